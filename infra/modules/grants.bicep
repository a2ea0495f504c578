// Role assignments on one storage account.

@description('The account\'s name.')
param account string
@description('What is granted: { to: principal id, role: role definition id, condition: empty or an ABAC condition }.')
param grants array

resource granted 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: account
}

resource assignments 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for grant in grants: {
    scope: granted
    name: guid(granted.id, grant.to, grant.role)
    properties: {
      principalId: grant.to
      principalType: 'ServicePrincipal'
      roleDefinitionId: grant.role
      condition: empty(grant.condition) ? null : grant.condition
      conditionVersion: empty(grant.condition) ? null : '2.0'
    }
  }
]
