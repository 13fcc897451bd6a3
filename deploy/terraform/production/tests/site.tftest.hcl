mock_provider "azurerm" {
  source = "../mocks"
}

# Identities and subnets that would else be one: who may what is told apart by them.
override_resource {
  target = module.site.module.aks.azurerm_user_assigned_identity.cluster
  values = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ManagedIdentity/userAssignedIdentities/cluster"
    principal_id = "00000000-0000-0000-0000-0000000000c1"
    tenant_id    = "00000000-0000-0000-0000-00000000000e"
  }
}
override_resource {
  target = module.site.module.aks.azurerm_user_assigned_identity.kubelet
  values = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ManagedIdentity/userAssignedIdentities/kubelet"
    principal_id = "00000000-0000-0000-0000-000000000021"
    client_id    = "00000000-0000-0000-0000-000000000022"
  }
}
override_resource {
  target = module.site.module.data.azurerm_user_assigned_identity.storage
  values = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ManagedIdentity/userAssignedIdentities/storage"
    principal_id = "00000000-0000-0000-0000-000000000051"
    client_id    = "00000000-0000-0000-0000-000000000052"
  }
}
override_resource {
  target = module.site.module.network.azurerm_subnet.nodes
  values = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/nodes" }
}
override_resource {
  target = module.site.module.network.azurerm_subnet.entrance
  values = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/entrance" }
}
override_resource {
  target = module.site.module.network.azurerm_subnet.endpoints
  values = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/endpoints" }
}

variables {
  name              = "athensctl-production"
  location          = "westeurope"
  api_server_ranges = ["203.0.113.7/32"]
  admins            = { operators = "00000000-0000-0000-0000-00000000000a" }
  deployers         = { pipeline = "00000000-0000-0000-0000-00000000000d" }
  cosmos            = { mode = "autoscale", max_throughput = 4000, second_region = "northeurope", zone_redundant = true, backup_days = 30 }
  host_name         = "goproxy.example.com"
  alert_emails      = { operators = "operators@example.com" }
}

# The first apply: there is no chart, and no private link service, yet.
run "first" {
  assert {
    condition     = output.url == "https://goproxy.example.com" && output.require_header == "X-Azure-FDID=00000000-0000-0000-0000-0000000000fd"
    error_message = "The public name, or the header that locks the origin, is another."
  }
  assert {
    condition     = output.cluster == { name = "athensctl-production", resource_group = "athensctl-production", node_resource_group = "athensctl-production-nodes", namespace = "athensctl", private_link_service = "athensctl" }
    error_message = "Names of the cluster are others than docs/aks.md uses."
  }
  assert {
    condition     = yamldecode(output.helm_values).store == { type = "cosmos", cosmos = { endpoint = "https://site.documents.azure.com:443", database = "athensctl", regions = ["westeurope", "northeurope"], backgroundUnits = 2000 }, blob = { endpoint = "https://site.blob.core.windows.net", container = "modules" } }
    error_message = "The chart is told of another store."
  }
  assert {
    condition     = yamldecode(output.helm_values).storage.serviceAccount.annotations == { "azure.workload.identity/client-id" = "00000000-0000-0000-0000-000000000052" }
    error_message = "The storage role is another identity."
  }
  assert {
    condition     = yamldecode(output.helm_values).service.annotations["service.beta.kubernetes.io/azure-pls-name"] == output.cluster.private_link_service && yamldecode(output.helm_values).service.annotations["service.beta.kubernetes.io/azure-load-balancer-ipv4"] == "10.40.16.100"
    error_message = "The chart makes another private link service than Front Door looks for."
  }
}

run "published" {
  variables {
    publish = true
  }
  assert {
    condition     = yamldecode(output.helm_values).requireHeader.existingSecret == "athensctl-front-door"
    error_message = "The origin takes requests from anybody."
  }
}

run "over_the_internet" {
  variables {
    publish          = true
    private_link     = false
    origin_host_name = "origin.example.com"
  }
  assert {
    condition     = yamldecode(output.helm_values).service == { type = "ClusterIP", annotations = {} } && yamldecode(output.helm_values).ingress == { enabled = true, hosts = ["origin.example.com"], tlsSecret = "athensctl-tls" }
    error_message = "Without private link the chart needs an ingress of that name, with a certificate."
  }
  assert {
    condition     = yamldecode(output.helm_values).requireHeader.existingSecret == "athensctl-front-door" && output.cluster.private_link_service == null
    error_message = "The origin takes requests from anybody."
  }
}

# By choice, production has what staging has.
run "serverless" {
  variables {
    cosmos = { mode = "serverless" }
  }
  assert {
    condition     = yamldecode(output.helm_values).store.cosmos.regions == ["westeurope"]
    error_message = "There is a second region."
  }
  assert {
    condition     = yamldecode(output.helm_values).store.cosmos.backgroundUnits == 2500
    error_message = "What is fetched ahead of demand may take more than half of a serverless container, or less."
  }
}
