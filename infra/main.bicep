// Pagekeeper in one subscription: the app, its state, the backup account, who may do what, what is watched.
// Source accounts and virtual machines exist already and are only given role assignments.
targetScope = 'subscription'

@minLength(2)
@maxLength(24)
@description('Names everything: the resource group is rg-<environmentName>. Set by azd from the environment\'s name.')
param environmentName string

@description('Region of everything that is made. Take the source accounts\' region: traffic between regions costs, and is slower.')
param location string

@description('Resource ids of the storage accounts whose disks may be protected, separated by spaces. The allow-list of the app.')
param sourceAccountIds string

@description('Blob endpoints of those accounts, separated by spaces, as az storage account show tells them (primaryEndpoints.blob). Empty: https://<name>.blob.<suffix of the cloud>, which is right but for accounts with a DNS zone endpoint. They are not looked up here: an account that is gone must not stop the deployment of the app.')
param sourceEndpoints string = ''

@description('Resource ids of the resource groups whose virtual machines may be given restored disks, separated by spaces. Empty: none; restores then end at the new disk.')
param machineGroupIds string = ''

@description('Resource ids of the resource groups whose managed disks may be protected, separated by spaces. Empty: none.')
param diskGroupIds string = ''

@description('Resource id of the resource group that keeps the snapshots of managed disks. Empty: each disk\'s own.')
param snapshotGroupId string = ''

@description('Who gets the alerts. Empty: alerts are raised in the portal and sent to nobody.')
param alertEmail string = ''

@minValue(1)
@description('Age of a disk\'s newest restore point, in hours, beyond which the alert "RPO over limit" is raised. A little more than two windows of the schedule.')
param rpoLimitHours int = 26

@description('Python of the Functions runtime.')
@allowed(['3.11', '3.12', '3.13'])
param pythonVersion string = '3.12'

@description('Deploy retention and restore as an app of their own. One process that holds several identities is no isolation: whoever runs code in it has them all. With two apps, code in the one that backs up can neither delete backups nor write to source disks.')
param separateCustody bool = false

@description('Put the app into a virtual network, give state, backups and sources private endpoints there, and close the public endpoints of state and backups. The app itself can still be called from anywhere; the sources\' own firewalls are left as they are.')
param privateNetwork bool = false

@description('How callers are known: by function keys, or besides by Entra ID with app roles (infra/app-roles.json).')
@allowed(['keys', 'entra'])
param signIn string = 'keys'

@description('Client id of the app registration, for signIn entra.')
param entraClientId string = ''

@description('When every disk is backed up: NCRONTAB of six fields, UTC. Empty: every 12 hours.')
param backupSchedule string = ''

@description('How full backups are copied: see FULL_COPY in docs/settings.md. With blob the identities that read may also ask for user delegation keys.')
@allowed(['pages', 'blob'])
param fullCopy string = 'pages'

@minValue(1)
@maxValue(365)
@description('Days that a deleted backup blob, snapshot or container can be had back.')
param softDeleteDays int = 14

@description('Redundancy of the backup account. Not every region has zones: Standard_LRS is everywhere.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS', 'Standard_RAGRS', 'Standard_RAGZRS'])
param backupSku string = 'Standard_ZRS'

@description('Limit the source identity\'s deletions to snapshots by a condition on its role assignment. Unproved: how the service judges a deletion under it could not be tried where this was written; leave it off until you have.')
param conditionOnSourceDeletes bool = false

var tags = { 'azd-env-name': environmentName }
var unique = take(uniqueString(subscription().id, environmentName, location), 8)
var sources = filter(split(sourceAccountIds, ' '), id => !empty(id))
var machineGroups = filter(split(machineGroupIds, ' '), id => !empty(id))
var diskGroups = filter(split(diskGroupIds, ' '), id => !empty(id))
var snapshotGroups = union(diskGroups, filter([snapshotGroupId], id => !empty(id)))
var exportHosts = 'md-*.blob.storage.azure.net md-*.blob.core.windows.net md-*.blob.core.usgovcloudapi.net md-*.blob.core.chinacloudapi.cn'
var blobSuffix = 'blob.${environment().suffixes.storage}'
var derivedUrls = join(map(sources, id => 'https://${last(split(id, '/'))}.${blobSuffix}'), ' ')
var switches = loadJsonContent('switches.json')

// Built-in roles.
var tableDataContributor = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'
)
var blobDelegator = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  'db58b8e5-c6ad-4a2a-8342-4190687cbf4a'
)

resource group 'Microsoft.Resources/resourceGroups@2024-03-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module roles 'modules/roles.bicep' = {
  name: 'roles'
  params: {
    environmentName: environmentName
    scopes: concat(sources, machineGroups, snapshotGroups)
  }
}

module identities 'modules/identities.bicep' = {
  name: 'identities'
  scope: group
  params: {
    environmentName: environmentName
    location: location
    tags: tags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  scope: group
  params: {
    environmentName: environmentName
    location: location
    tags: tags
    alertEmail: alertEmail
    rpoLimitHours: rpoLimitHours
    publishers: [identities.outputs.app.principalId, identities.outputs.custody.principalId]
  }
}

module backups 'modules/backups.bicep' = {
  name: 'backups'
  scope: group
  params: {
    name: 'stbackup${unique}'
    location: location
    tags: tags
    sku: backupSku
    softDeleteDays: softDeleteDays
    public: !privateNetwork
  }
}

module network 'modules/network.bicep' = if (privateNetwork) {
  name: 'network'
  scope: group
  params: {
    environmentName: environmentName
    location: location
    tags: tags
  }
}

module ownEndpoints 'modules/endpoints.bicep' = if (privateNetwork) {
  name: 'endpoints-own'
  scope: group
  params: {
    location: location
    tags: tags
    subnet: network!.outputs.endpointSubnet
    zones: network!.outputs.zones
    accounts: concat(
      [
        { id: backups.outputs.id, kinds: ['blob', 'table'] }
        { id: state.outputs.id, kinds: ['blob', 'queue', 'table'] }
      ],
      separateCustody ? [{ id: custodyState!.outputs.id, kinds: ['blob', 'queue', 'table'] }] : []
    )
  }
}

// One module for each: where an account is gone, its own fails alone.
module endpointsOfSources 'modules/endpoints.bicep' = [
  for id in sources: if (privateNetwork) {
    name: 'endpoints-${uniqueString(id)}'
    scope: group
    params: {
      location: location
      tags: tags
      subnet: network!.outputs.endpointSubnet
      zones: network!.outputs.zones
      accounts: [{ id: id, kinds: ['blob'] }]
    }
  }
]

// -- the app, or the half of it that backs up ------------------------------------------------------------------------

module state 'modules/state.bicep' = {
  name: 'state'
  scope: group
  params: {
    name: 'ststate${unique}'
    location: location
    tags: tags
    principalId: identities.outputs.app.principalId
    public: !privateNetwork
  }
}

var common = {
  BACKUP_SCHEDULE: empty(backupSchedule) ? '0 0 */12 * * *' : backupSchedule
  WATCH_SCHEDULE: '0 */15 * * * *'
  HOUSEKEEPING_SCHEDULE: '0 30 3 * * *'
  SOURCE_ACCOUNTS: empty(sourceEndpoints) ? derivedUrls : sourceEndpoints
  BACKUP_ACCOUNT: backups.outputs.blobEndpoint
  CATALOGUE_ACCOUNT: backups.outputs.tableEndpoint
  HEADS_CONTAINER: 'heads'
  PLANS_CONTAINER: 'plans'
  CATALOGUE_TABLE: 'pagekeeper'
  FORMER_CATALOGUES: ''
  WAVE_SHARDS: '4'
  ACTIVE_DISKS: '50'
  COPY_MODE: 'auto'
  FULL_COPY: fullCopy
  IN_FLIGHT: '16'
  GAP_RATIO: '2.0'
  BLOB_REQUESTS_PER_SECOND: '500'
  BLOB_MIB_PER_SECOND: '60'
  ACCOUNT_REQUESTS_PER_SECOND: '20000'
  ACCOUNT_MIB_PER_SECOND: '2980'
  RESTORE_VERIFICATION: 'full'
  DISK_RESTORE: 'upload'
  ARM_ENDPOINT: environment().resourceManager
  SOURCE_ACCOUNT_IDS: join(sources, ' ')
  MACHINE_GROUPS: join(machineGroups, ' ')
  DISK_GROUPS: join(diskGroups, ' ')
  SNAPSHOT_GROUP: snapshotGroupId
  SNAPSHOT_ACCESS_SECONDS: '7200'
  EXPORT_HOSTS: exportHosts
  EXPORT_MAXRESULTS: 'true'
  HISTORY_DAYS: '30'
  RUN_DAYS: '180'
  CUSTODY_ACCOUNT: ''
  CUSTODY_DAYS: '7'
  CUSTODY_DELETIONS: '24'
  SIGN_IN: signIn
}

module app 'modules/app.bicep' = {
  name: 'app'
  scope: group
  params: {
    name: 'func-${environmentName}-${unique}'
    service: 'app'
    location: location
    tags: tags
    pythonVersion: pythonVersion
    stateName: state.outputs.name
    packages: state.outputs.packages
    insightsName: monitoring.outputs.insightsName
    subnet: privateNetwork ? network!.outputs.appSubnet : ''
    signIn: signIn
    entraClientId: entraClientId
    host: identities.outputs.app
    others: concat(
      [identities.outputs.source, identities.outputs.writer],
      separateCustody ? [] : [identities.outputs.retention, identities.outputs.restore]
    )
    off: separateCustody ? switches.backup : []
    settings: union(common, {
      MANAGED_IDENTITY_CLIENT_ID: identities.outputs.app.clientId
      SOURCE_CLIENT_ID: identities.outputs.source.clientId
      WRITER_CLIENT_ID: identities.outputs.writer.clientId
      RETENTION_CLIENT_ID: separateCustody ? '' : identities.outputs.retention.clientId
      RESTORE_CLIENT_ID: separateCustody ? '' : identities.outputs.restore.clientId
      PRUNE_AFTER_BACKUP: separateCustody ? 'false' : 'true'
    })
  }
  // Not on what is granted at sources: an account that is gone must not stop the app.
  dependsOn: [backupGrants, ownEndpoints]
}

// -- retention and restore as an app of their own --------------------------------------------------------------------

module custodyState 'modules/state.bicep' = if (separateCustody) {
  name: 'custody-state'
  scope: group
  params: {
    name: 'stcustody${unique}'
    location: location
    tags: tags
    principalId: identities.outputs.custody.principalId
    records: identities.outputs.retention.principalId
    public: !privateNetwork
  }
}

module custody 'modules/app.bicep' = if (separateCustody) {
  name: 'custody'
  scope: group
  params: {
    name: 'func-${environmentName}-custody-${unique}'
    service: 'custody'
    location: location
    tags: tags
    pythonVersion: pythonVersion
    stateName: custodyState!.outputs.name
    packages: custodyState!.outputs.packages
    insightsName: monitoring.outputs.insightsName
    subnet: privateNetwork ? network!.outputs.custodySubnet : ''
    signIn: signIn
    entraClientId: entraClientId
    host: identities.outputs.custody
    others: [identities.outputs.retention, identities.outputs.restore]
    off: switches.custody
    // What it does as a backup's owner, it does as restore.
    settings: union(common, {
      MANAGED_IDENTITY_CLIENT_ID: identities.outputs.restore.clientId
      RETENTION_CLIENT_ID: identities.outputs.retention.clientId
      AzureFunctionsJobHost__extensions__durableTask__hubName: 'PagekeeperCustody'
      PRUNE_AFTER_BACKUP: 'false'
      CUSTODY_ACCOUNT: custodyState!.outputs.endpoint
    })
  }
  // Not on what is granted at sources: an account that is gone must not stop the app.
  dependsOn: [backupGrants, ownEndpoints]
}

// -- who may do what ---------------------------------------------------------------------------------------------------

var snapshotsOnly = '((!(ActionMatches{\'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete\'})) OR (Exists @Request[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:snapshot]))'

var onSourceDeletes = conditionOnSourceDeletes ? snapshotsOnly : ''

module sourceGrants 'modules/grants.bicep' = [
  for id in sources: {
    name: 'grants-${uniqueString(id)}'
    scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
    params: {
      account: last(split(id, '/'))
      grants: concat(
        [
          { to: identities.outputs.source.principalId, role: roles.outputs.ids.source, condition: onSourceDeletes }
          {
            to: identities.outputs.retention.principalId
            role: roles.outputs.ids.retentionSource
            condition: onSourceDeletes
          }
          { to: identities.outputs.restore.principalId, role: roles.outputs.ids.restore, condition: '' }
        ],
        fullCopy == 'blob'
          ? [
              { to: identities.outputs.source.principalId, role: blobDelegator, condition: '' }
              { to: identities.outputs.restore.principalId, role: blobDelegator, condition: '' }
            ]
          : []
      )
    }
  }
]

module backupGrants 'modules/grants.bicep' = {
  name: 'grants-backups'
  scope: group
  params: {
    account: backups.outputs.name
    grants: concat(
      [
        { to: identities.outputs.writer.principalId, role: roles.outputs.ids.writer, condition: '' }
        { to: identities.outputs.writer.principalId, role: tableDataContributor, condition: '' }
        { to: identities.outputs.retention.principalId, role: roles.outputs.ids.retention, condition: '' }
        { to: identities.outputs.restore.principalId, role: roles.outputs.ids.restore, condition: '' }
      ],
      separateCustody
        ? [
            { to: identities.outputs.restore.principalId, role: tableDataContributor, condition: '' }
          ]
        : [],
      fullCopy == 'blob'
        ? [
            { to: identities.outputs.restore.principalId, role: blobDelegator, condition: '' }
          ]
        : []
    )
  }
}

module diskGrants 'modules/group.bicep' = [
  for id in snapshotGroups: {
    name: 'disks-${uniqueString(id)}'
    scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
    params: {
      grants: concat(
        [
          { to: identities.outputs.source.principalId, role: roles.outputs.ids.disks }
          { to: identities.outputs.retention.principalId, role: roles.outputs.ids.retentionDisks }
          { to: identities.outputs.restore.principalId, role: roles.outputs.ids.retentionDisks }
        ],
        // The app with custody has no source identity: its restores snapshot and read the disks that they have imported.
        separateCustody ? [{ to: identities.outputs.restore.principalId, role: roles.outputs.ids.disks }] : []
      )
    }
  }
]

module machineGrants 'modules/group.bicep' = [
  for id in machineGroups: {
    name: 'machines-${uniqueString(id)}'
    scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
    params: {
      grants: [
        { to: identities.outputs.restore.principalId, role: roles.outputs.ids.machine }
        { to: identities.outputs.retention.principalId, role: roles.outputs.ids.retentionMachine }
      ]
    }
  }
]

output AZURE_RESOURCE_GROUP string = group.name
output PAGEKEEPER_API string = 'https://${app.outputs.hostName}/api'
output PAGEKEEPER_APP string = app.outputs.name
output PAGEKEEPER_CUSTODY_APP string = separateCustody ? custody!.outputs.name : ''
output PAGEKEEPER_BACKUP_ACCOUNT string = backups.outputs.name
