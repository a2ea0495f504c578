// The account that keeps the backups and the catalogue. It outlives the app: it is locked, and what is deleted can be had back.

@description('The account\'s name.')
param name string
@description('Its region.')
param location string
@description('Its tags.')
param tags object
@description('Its redundancy.')
param sku string
@description('Days that a deleted blob, snapshot or container can be had back.')
param softDeleteDays int
@description('Whether the account can be reached from public networks, with a token.')
param public bool

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: sku }
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
  properties: {
    deleteRetentionPolicy: { enabled: true, days: softDeleteDays }
    containerDeleteRetentionPolicy: { enabled: true, days: softDeleteDays }
  }
}

resource containers 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = [
  for container in ['heads', 'plans']: {
    parent: blobs
    name: container
    properties: { publicAccess: 'None' }
  }
]

// The account itself can only be deleted after this lock is: see "Uninstall" in the handbook. Blobs are not held by it.
resource lock 'Microsoft.Authorization/locks@2020-05-01' = {
  scope: account
  name: 'pagekeeper-backups'
  properties: {
    level: 'CanNotDelete'
    notes: 'Restore points of virtual machine disks. Delete only when none is needed any more.'
  }
}

output id string = account.id
output name string = account.name
output blobEndpoint string = account.properties.primaryEndpoints.blob
output tableEndpoint string = account.properties.primaryEndpoints.table
