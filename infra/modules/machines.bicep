// The right to give the virtual machines of one resource group their restored disks.

@description('The identity that restores.')
param principalId string
@description('Id of the custom role.')
param role string

resource assignment 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(resourceGroup().id, principalId, role)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: role
  }
}
