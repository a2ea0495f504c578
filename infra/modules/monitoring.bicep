// Where the app's telemetry goes, the workbook that shows it, and the alerts that are raised on it.

@description('Part of the names.')
param environmentName string
@description('The region.')
param location string
@description('The tags.')
param tags object
@description('Who gets the alerts; empty for nobody.')
param alertEmail string
@description('Hours beyond which a newest restore point is too old.')
param rpoLimitHours int
@description('Principal ids of the identities that send telemetry.')
param publishers array
@minValue(30)
@description('Days that telemetry is kept.')
param retentionDays int = 90

var alerts = loadJsonContent('../alerts.json')
// Monitoring Metrics Publisher.
var publisher = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  '3913510d-42f4-4e42-8a64-420c390055eb'
)

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'log-${environmentName}'
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: retentionDays
  }
}

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: 'appi-${environmentName}'
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspace.id
    DisableLocalAuth: true
  }
}

resource grants 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for principal in publishers: {
    scope: insights
    name: guid(insights.id, principal, publisher)
    properties: {
      principalId: principal
      principalType: 'ServicePrincipal'
      roleDefinitionId: publisher
    }
  }
]

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = if (!empty(alertEmail)) {
  name: 'ag-${environmentName}'
  location: 'global'
  tags: tags
  properties: {
    groupShortName: 'pagekeeper'
    enabled: true
    emailReceivers: [{ name: 'operator', emailAddress: alertEmail, useCommonAlertSchema: true }]
  }
}

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, environmentName, 'workbook')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: 'Pagekeeper (${environmentName})'
    category: 'workbook'
    serializedData: replace(loadTextContent('../workbook.json'), '{insightsId}', insights.id)
    sourceId: insights.id
  }
}

resource rules 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [
  for alert in alerts: {
    name: 'pagekeeper-${alert.name}-${environmentName}'
    location: location
    tags: tags
    kind: 'LogAlert'
    properties: {
      displayName: 'Pagekeeper: ${alert.title}'
      description: alert.firstMove
      severity: alert.severity
      enabled: true
      scopes: [insights.id]
      evaluationFrequency: alert.every
      windowSize: alert.window
      autoMitigate: alert.autoMitigate
      criteria: {
        allOf: [
          {
            query: replace(alert.query, '{rpoSeconds}', string(rpoLimitHours * 3600))
            timeAggregation: 'Count'
            operator: alert.operator
            threshold: alert.threshold
            dimensions: empty(alert.dimension) ? [] : [{ name: alert.dimension, operator: 'Include', values: ['*'] }]
            failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
          }
        ]
      }
      actions: { actionGroups: empty(alertEmail) ? [] : [people.id] }
    }
  }
]

output insightsName string = insights.name
