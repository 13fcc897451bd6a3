mock_provider "azurerm" {
  source = "../../mocks"
}

override_resource {
  target = azurerm_user_assigned_identity.kubelet
  values = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ManagedIdentity/userAssignedIdentities/kubelet"
    principal_id = "00000000-0000-0000-0000-000000000021"
    client_id    = "00000000-0000-0000-0000-000000000022"
  }
}

variables {
  name                = "site"
  resource_group_name = "site"
  location            = "westeurope"
  tags                = {}
  nodes_subnet_id     = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/nodes"
  entrance_subnet_id  = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/entrance"
  zones               = ["1", "2", "3"]
  cluster = {
    tier   = "Standard"
    system = { vm_size = "Standard_D2s_v5", min = 3, max = 6 }
    work   = { vm_size = "Standard_D4s_v5", min = 3, max = 12 }
  }
  api_server_ranges = ["203.0.113.7/32"]
  admins            = { operators = "00000000-0000-0000-0000-00000000000a" }
  deployers         = { pipeline = "00000000-0000-0000-0000-00000000000d" }
  namespace         = "athensctl"
  registry          = { name = "siteregistry", sku = "Standard" }
  log_workspace_id  = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.OperationalInsights/workspaces/site"
}

run "cluster" {
  assert {
    condition     = azurerm_kubernetes_cluster.this.oidc_issuer_enabled && azurerm_kubernetes_cluster.this.workload_identity_enabled
    error_message = "Pods can't be identities of Entra ID."
  }
  assert {
    condition = alltrue([
      azurerm_kubernetes_cluster.this.local_account_disabled,
      azurerm_kubernetes_cluster.this.run_command_enabled == false,
      azurerm_kubernetes_cluster.this.azure_active_directory_role_based_access_control[0].azure_rbac_enabled,
      azurerm_kubernetes_cluster.this.api_server_access_profile[0].authorized_ip_ranges == toset(["203.0.113.7/32"]),
    ])
    error_message = "There is another way to the Kubernetes API than Entra ID, from the addresses that are given."
  }
  assert {
    condition = alltrue([
      azurerm_kubernetes_cluster.this.network_profile[0].network_plugin == "azure",
      azurerm_kubernetes_cluster.this.network_profile[0].network_plugin_mode == "overlay",
      azurerm_kubernetes_cluster.this.network_profile[0].network_policy == "cilium",
      azurerm_kubernetes_cluster.this.network_profile[0].network_data_plane == "cilium",
    ])
    error_message = "The network is not Azure CNI with a network policy: the chart's NetworkPolicies would mean nothing."
  }
  assert {
    condition = alltrue([for pool in [azurerm_kubernetes_cluster.this.default_node_pool[0], azurerm_kubernetes_cluster_node_pool.work] :
    pool.zones == toset(["1", "2", "3"]) && pool.auto_scaling_enabled && pool.max_count > pool.min_count && pool.vnet_subnet_id == var.nodes_subnet_id])
    error_message = "A node pool is not spread over the zones, does not scale, or is elsewhere."
  }
  assert {
    condition     = azurerm_container_registry.this.admin_enabled == false && azurerm_container_registry.this.anonymous_pull_enabled == false
    error_message = "The registry has a password, or is open."
  }
  assert {
    condition     = azurerm_role_assignment.pull.principal_id == azurerm_user_assigned_identity.kubelet.principal_id && azurerm_kubernetes_cluster.this.kubelet_identity[0].object_id == azurerm_user_assigned_identity.kubelet.principal_id && azurerm_role_assignment.pull.scope == azurerm_container_registry.this.id && azurerm_role_assignment.pull.role_definition_name == "AcrPull"
    error_message = "The kubelet may not pull from the registry, or more."
  }
  assert {
    condition     = azurerm_role_assignment.deployers["pipeline"].scope == "${azurerm_kubernetes_cluster.this.id}/namespaces/athensctl"
    error_message = "What deploys may do so outside its namespace."
  }
}

run "open_to_the_internet" {
  command         = plan
  expect_failures = [var.api_server_ranges]
  variables {
    api_server_ranges = ["0.0.0.0/0"]
  }
}

run "one_zone" {
  command         = plan
  expect_failures = [var.zones]
  variables {
    zones = ["1"]
  }
}
