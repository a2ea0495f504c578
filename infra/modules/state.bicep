// An app's own storage account: its package, and the queues, tables and blobs of the Functions host and Durable Functions.

@description('The account\'s name.')
param name string
@description('Its region.')
param location string
@description('Its tags.')
param tags object
@description('The app\'s host identity.')
param principalId string
@description('The identity that keeps the records of custody here; empty for an app without custody.')
param records string = ''
@description('Whether the account can be reached from public networks, with a token.')
param public bool

var packages = 'packages'
// Storage Blob Data Owner, Storage Queue Data Contributor, Storage Table Data Contributor: what the Functions host asks for.
var roles = [
  'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
  '974c5e8b-45b9-4653-ba55-5f855dd0fb88'
  '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'
]

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: 'Standard_LRS' }
  properties: {
    allowSharedKeyAccess: false
    allowBlobPublicAccess: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: public ? 'Enabled' : 'Disabled'
    networkAcls: { defaultAction: public ? 'Allow' : 'Deny', bypass: 'None' }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: account
  name: 'default'
  properties: { deleteRetentionPolicy: { enabled: true, days: 7 } }
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: packages
  properties: { publicAccess: 'None' }
}

resource grants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for role in roles: {
    scope: account
    name: guid(account.id, principalId, role)
    properties: {
      principalId: principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role)
    }
  }
]

// What an app with custody of the backups goes by: no other app's identity may write here.
resource custody 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = if (!empty(records)) {
  parent: blobs
  name: 'custody'
  properties: { publicAccess: 'None' }
}

// Storage Blob Data Contributor
var contributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource keeps 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(records)) {
  scope: custody
  name: guid(account.id, records, contributor)
  properties: {
    principalId: records
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', contributor)
  }
}

output id string = account.id
output name string = account.name
output endpoint string = account.properties.primaryEndpoints.blob
output packages string = '${account.properties.primaryEndpoints.blob}${container.name}'
