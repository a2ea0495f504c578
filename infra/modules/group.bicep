// Role assignments on one resource group: of virtual machines, of managed disks or of their snapshots.

@description('What is granted: { to: principal id, role: role definition id }.')
param grants array

resource assignments 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for grant in grants: {
    name: guid(resourceGroup().id, grant.to, grant.role)
    properties: {
      principalId: grant.to
      principalType: 'ServicePrincipal'
      roleDefinitionId: grant.role
    }
  }
]
