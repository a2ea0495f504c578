// The custom roles of infra/roles.json, which is also the table in the README.
targetScope = 'subscription'

@description('Part of the roles\' names, which are unique in a tenant.')
param environmentName string

@description('Resource ids of all there is to grant on outside this subscription\'s own resource group.')
param scopes array

var definitions = loadJsonContent('../roles.json')
var here = subscription().id
var subscriptions = union([here], map(scopes, id => '/subscriptions/${split(id, '/')[2]}'))

resource roles 'Microsoft.Authorization/roleDefinitions@2022-04-01' = [
  for role in items(definitions): {
    name: guid(subscription().id, environmentName, role.key)
    properties: {
      roleName: '${role.value.name} (${environmentName})'
      description: role.value.description
      type: 'CustomRole'
      permissions: [
        {
          actions: role.value.actions
          notActions: []
          dataActions: role.value.dataActions
          notDataActions: []
        }
      ]
      assignableScopes: subscriptions
    }
  }
]

@description('Id of each role by its key in roles.json.')
output ids object = toObject(
  items(definitions),
  role => role.key,
  role =>
    subscriptionResourceId(
      'Microsoft.Authorization/roleDefinitions',
      guid(subscription().id, environmentName, role.key)
    )
)
