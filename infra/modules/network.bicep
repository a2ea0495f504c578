// A virtual network with private endpoints for state, backups and sources.

@description('Part of the names.')
param environmentName string
@description('The region.')
param location string
@description('The tags.')
param tags object
@description('Resource ids of the source accounts. Their own firewalls are left as they are.')
param sources array
@description('Resource id of the backup account.')
param backups string
@description('Resource ids of the apps\' own accounts.')
param states array

var kinds = ['blob', 'queue', 'table']
var zoneNames = map(kinds, kind => 'privatelink.${kind}.${environment().suffixes.storage}')
var forStates = flatten(map(states, id => map(kinds, kind => { id: id, kind: kind })))
var wanted = concat(forStates, [{ id: backups, kind: 'blob' }, { id: backups, kind: 'table' }], map(sources, id => { id: id, kind: 'blob' }))

resource network 'Microsoft.Network/virtualNetworks@2024-01-01' = {
  name: 'vnet-${environmentName}'
  location: location
  tags: tags
  properties: {
    addressSpace: { addressPrefixes: ['10.80.0.0/22'] }
    subnets: [
      {
        name: 'app'
        properties: {
          addressPrefix: '10.80.0.0/24'
          delegations: [{ name: 'flex', properties: { serviceName: 'Microsoft.App/environments' } }]
        }
      }
      {
        name: 'custody'
        properties: {
          addressPrefix: '10.80.1.0/24'
          delegations: [{ name: 'flex', properties: { serviceName: 'Microsoft.App/environments' } }]
        }
      }
      {
        name: 'endpoints'
        properties: { addressPrefix: '10.80.2.0/24' }
      }
    ]
  }
}

resource zones 'Microsoft.Network/privateDnsZones@2020-06-01' = [
  for zone in zoneNames: {
    name: zone
    location: 'global'
    tags: tags
  }
]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2020-06-01' = [
  for (zone, index) in zoneNames: {
    parent: zones[index]
    name: 'link-${environmentName}'
    location: 'global'
    properties: {
      registrationEnabled: false
      virtualNetwork: { id: network.id }
    }
  }
]

resource endpoints 'Microsoft.Network/privateEndpoints@2024-01-01' = [
  for one in wanted: {
    name: 'pe-${last(split(one.id, '/'))}-${one.kind}'
    location: location
    tags: tags
    properties: {
      subnet: { id: '${network.id}/subnets/endpoints' }
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
          properties: { privateDnsZoneId: zones[indexOf(kinds, one.kind)].id }
        }
      ]
    }
  }
]

output appSubnet string = '${network.id}/subnets/app'
output custodySubnet string = '${network.id}/subnets/custody'
