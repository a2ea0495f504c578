// One identity per duty, and one per app for its own state and telemetry.

@description('Part of the identities\' names.')
param environmentName string
@description('Their region.')
param location string
@description('Their tags.')
param tags object

resource app 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'id-${environmentName}-app'
  location: location
  tags: tags
}

resource custody 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'id-${environmentName}-custody'
  location: location
  tags: tags
}

resource source 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'id-${environmentName}-source'
  location: location
  tags: tags
}

resource writer 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'id-${environmentName}-writer'
  location: location
  tags: tags
}

resource retention 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'id-${environmentName}-retention'
  location: location
  tags: tags
}

resource restore 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'id-${environmentName}-restore'
  location: location
  tags: tags
}

output app object = { id: app.id, clientId: app.properties.clientId, principalId: app.properties.principalId }
output custody object = {
  id: custody.id
  clientId: custody.properties.clientId
  principalId: custody.properties.principalId
}
output source object = {
  id: source.id
  clientId: source.properties.clientId
  principalId: source.properties.principalId
}
output writer object = {
  id: writer.id
  clientId: writer.properties.clientId
  principalId: writer.properties.principalId
}
output retention object = {
  id: retention.id
  clientId: retention.properties.clientId
  principalId: retention.properties.principalId
}
output restore object = {
  id: restore.id
  clientId: restore.properties.clientId
  principalId: restore.properties.principalId
}
