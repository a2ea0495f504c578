// A virtual network, and the zones in which private endpoints have their names.

@description('Part of the names.')
param environmentName string
@description('The region.')
param location string
@description('The tags.')
param tags object

var kinds = ['blob', 'queue', 'table']
var zoneNames = map(kinds, kind => 'privatelink.${kind}.${environment().suffixes.storage}')

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

output appSubnet string = '${network.id}/subnets/app'
output custodySubnet string = '${network.id}/subnets/custody'
output endpointSubnet string = '${network.id}/subnets/endpoints'
@description('Id of the zone of each kind of endpoint.')
output zones object = toObject(
  kinds,
  kind => kind,
  kind => resourceId('Microsoft.Network/privateDnsZones', 'privatelink.${kind}.${environment().suffixes.storage}')
)
