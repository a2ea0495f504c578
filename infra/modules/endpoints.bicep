// Private endpoints of storage accounts, each with its name in the zone of its kind.

@description('The region.')
param location string
@description('The tags.')
param tags object
@description('Subnet of the endpoints.')
param subnet string
@description('Id of the private DNS zone of each kind: blob, queue, table.')
param zones object
@description('The accounts: { id: resource id, kinds: some of blob, queue, table }.')
param accounts array

var wanted = flatten(map(accounts, account => map(account.kinds, kind => { id: account.id, kind: kind })))

// One at a time: Azure refuses several at once on one account (StorageAccountOperationInProgress).
@batchSize(1)
resource endpoints 'Microsoft.Network/privateEndpoints@2024-01-01' = [
  for one in wanted: {
    name: 'pe-${last(split(one.id, '/'))}-${one.kind}'
    location: location
    tags: tags
    properties: {
      subnet: { id: subnet }
      privateLinkServiceConnections: [
        {
          name: one.kind
          properties: { privateLinkServiceId: one.id, groupIds: [one.kind] }
        }
      ]
    }
  }
]

resource records 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-01-01' = [
  for (one, index) in wanted: {
    parent: endpoints[index]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        {
          name: one.kind
          properties: { privateDnsZoneId: zones[one.kind] }
        }
      ]
    }
  }
]
