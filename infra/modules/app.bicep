// A function app on Flex Consumption, signed in by identities only.

@description('The app\'s name.')
param name string
@description('The service of azure.yaml that is deployed here.')
param service string
@description('Its region.')
param location string
@description('Its tags.')
param tags object
@description('Python of the runtime.')
param pythonVersion string
@description('Name of the app\'s own storage account.')
param stateName string
@description('URL of the container that keeps the deployed package.')
param packages string
@description('Name of Application Insights in the same resource group.')
param insightsName string
@description('Subnet the app joins; empty for none.')
param subnet string
@description('keys, or entra.')
param signIn string
@description('Client id of the app registration, for entra.')
param entraClientId string
@description('The identity of the host itself: { id, clientId, principalId }.')
param host object
@description('The identities of the app\'s duties, in the same form.')
param others array
@description('Functions that are switched off in this app.')
param off array
@description('The app\'s settings.')
param settings object
@minValue(0)
@description('Instances that are always there for Durable Functions. 0 costs nothing between the windows, and starts a little later.')
param alwaysReady int = 0
@minValue(1)
@description('Most instances at a time.')
param instancesMax int = 40

// With underscores: Linux takes no periods in the name of a setting, and the host looks for either form.
var switchedOff = toObject(off, function => 'AzureWebJobs_${function}_Disabled', function => 'true')

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insightsName
}

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: 'plan-${name}'
  location: location
  tags: tags
  kind: 'functionapp'
  sku: { tier: 'FlexConsumption', name: 'FC1' }
  properties: { reserved: true }
}

resource site 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  tags: union(tags, { 'azd-service-name': service })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: toObject(concat([host], others), identity => identity.id, identity => {})
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    virtualNetworkSubnetId: empty(subnet) ? null : subnet
    siteConfig: { minTlsVersion: '1.2' }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: packages
          authentication: { type: 'UserAssignedIdentity', userAssignedIdentityResourceId: host.id }
        }
      }
      scaleAndConcurrency: {
        instanceMemoryMB: 2048
        maximumInstanceCount: instancesMax
        alwaysReady: alwaysReady > 0 ? [{ name: 'durable', instanceCount: alwaysReady }] : []
      }
      runtime: { name: 'python', version: pythonVersion }
    }
  }
}

resource appSettings 'Microsoft.Web/sites/config@2024-04-01' = {
  parent: site
  name: 'appsettings'
  properties: union(settings, switchedOff, {
    AzureWebJobsStorage__accountName: stateName
    AzureWebJobsStorage__credential: 'managedidentity'
    AzureWebJobsStorage__clientId: host.clientId
    // Read here, so that it is in no output. It names the place; keys are refused there.
    APPLICATIONINSIGHTS_CONNECTION_STRING: insights.properties.ConnectionString
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${host.clientId};Authorization=AAD'
  })
}

// One after the other, here and below: a site takes one change at a time ("Cannot acquire exclusive lock").
resource authentication 'Microsoft.Web/sites/config@2024-04-01' = if (signIn == 'entra') {
  parent: site
  name: 'authsettingsV2'
  dependsOn: [appSettings]
  properties: {
    platform: { enabled: true }
    globalValidation: {
      requireAuthentication: true
      unauthenticatedClientAction: 'Return401'
      excludedPaths: ['/api/health']
    }
    httpSettings: { requireHttps: true }
    identityProviders: {
      azureActiveDirectory: {
        enabled: true
        registration: {
          openIdIssuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
          clientId: entraClientId
        }
        validation: { allowedAudiences: [entraClientId, 'api://${entraClientId}'] }
      }
    }
    login: { tokenStore: { enabled: false } }
  }
}

// Deployment is by token: no publishing user and password.
resource noFtpPassword 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-04-01' = {
  parent: site
  name: 'ftp'
  properties: { allow: false }
  dependsOn: [appSettings, authentication]
}

resource noScmPassword 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-04-01' = {
  parent: site
  name: 'scm'
  properties: { allow: false }
  dependsOn: [noFtpPassword]
}

output name string = site.name
output hostName string = site.properties.defaultHostName
