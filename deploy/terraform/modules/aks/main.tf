# The Kubernetes cluster and the registry that it pulls from.

resource "azurerm_user_assigned_identity" "cluster" {
  name                = "${var.name}-cluster"
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

# The nodes' own: what pulls images.
resource "azurerm_user_assigned_identity" "kubelet" {
  name                = "${var.name}-kubelet"
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

# The cluster gives it to the nodes.
resource "azurerm_role_assignment" "kubelet" {
  scope                = azurerm_user_assigned_identity.kubelet.id
  role_definition_name = "Managed Identity Operator"
  principal_id         = azurerm_user_assigned_identity.cluster.principal_id
  principal_type       = "ServicePrincipal"
}

# The cluster makes load balancers and private link services in these two.
resource "azurerm_role_assignment" "network" {
  for_each = {
    nodes    = var.nodes_subnet_id
    entrance = var.entrance_subnet_id
  }
  scope                = each.value
  role_definition_name = "Network Contributor"
  principal_id         = azurerm_user_assigned_identity.cluster.principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_kubernetes_cluster" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  node_resource_group = "${var.resource_group_name}-nodes"
  location            = var.location
  dns_prefix          = var.name
  sku_tier            = var.cluster.tier

  automatic_upgrade_channel = "patch"
  node_os_upgrade_channel   = "NodeImage"

  # Pods are identities of Entra ID by their service account's token.
  oidc_issuer_enabled       = true
  workload_identity_enabled = true

  # People and pipelines are known by Entra ID alone, and what they may is in role assignments.
  local_account_disabled            = true
  role_based_access_control_enabled = true
  run_command_enabled               = false
  azure_active_directory_role_based_access_control {
    azure_rbac_enabled = true
    tenant_id          = azurerm_user_assigned_identity.cluster.tenant_id
  }
  api_server_access_profile {
    authorized_ip_ranges = var.api_server_ranges
  }

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.cluster.id]
  }
  kubelet_identity {
    client_id                 = azurerm_user_assigned_identity.kubelet.client_id
    object_id                 = azurerm_user_assigned_identity.kubelet.principal_id
    user_assigned_identity_id = azurerm_user_assigned_identity.kubelet.id
  }

  # The chart's NetworkPolicies are what keeps proxies from the internet: Cilium holds them.
  network_profile {
    network_plugin      = "azure"
    network_plugin_mode = "overlay"
    network_data_plane  = "cilium"
    network_policy      = "cilium"
    pod_cidr            = "10.244.0.0/16"
    service_cidr        = "172.16.0.0/16"
    dns_service_ip      = "172.16.0.10"
    load_balancer_sku   = "standard"
    outbound_type       = "loadBalancer"
  }

  node_provisioning_profile {
    mode = "Manual"
  }

  default_node_pool {
    name                         = "system"
    vm_size                      = var.cluster.system.vm_size
    zones                        = var.zones
    vnet_subnet_id               = var.nodes_subnet_id
    auto_scaling_enabled         = true
    min_count                    = var.cluster.system.min
    max_count                    = var.cluster.system.max
    only_critical_addons_enabled = true
    os_sku                       = "AzureLinux"
    temporary_name_for_rotation  = "systemnew"
    tags                         = var.tags
    upgrade_settings {
      max_surge = "33%"
    }
  }

  auto_scaler_profile {
    # Proxies have their caches in emptyDirs, which are disposable.
    skip_nodes_with_local_storage = false
    balance_similar_node_groups   = true
  }

  maintenance_window_auto_upgrade {
    frequency   = "Weekly"
    interval    = 1
    duration    = 4
    day_of_week = "Sunday"
    start_time  = "02:00"
    utc_offset  = "+00:00"
  }
  maintenance_window_node_os {
    frequency   = "Weekly"
    interval    = 1
    duration    = 4
    day_of_week = "Sunday"
    start_time  = "02:00"
    utc_offset  = "+00:00"
  }

  monitor_metrics {}
  oms_agent {
    log_analytics_workspace_id      = var.log_workspace_id
    msi_auth_for_monitoring_enabled = true
  }

  tags = var.tags

  lifecycle {
    # The autoscaler's.
    ignore_changes = [default_node_pool[0].node_count]
  }
  depends_on = [azurerm_role_assignment.network, azurerm_role_assignment.kubelet]
}

resource "azurerm_kubernetes_cluster_node_pool" "work" {
  name                        = "work"
  kubernetes_cluster_id       = azurerm_kubernetes_cluster.this.id
  mode                        = "User"
  vm_size                     = var.cluster.work.vm_size
  zones                       = var.zones
  vnet_subnet_id              = var.nodes_subnet_id
  auto_scaling_enabled        = true
  min_count                   = var.cluster.work.min
  max_count                   = var.cluster.work.max
  os_sku                      = "AzureLinux"
  temporary_name_for_rotation = "worknew"
  tags                        = var.tags
  upgrade_settings {
    max_surge = "33%"
  }

  lifecycle {
    ignore_changes = [node_count]
  }
}

# Who pushes comes from the internet (a pipeline), with a token of Entra ID.
resource "azurerm_container_registry" "this" {
  name                = var.registry.name
  resource_group_name = var.resource_group_name
  location            = var.location
  sku                 = var.registry.sku
  # What Azure has of it in every registry by itself now, a Premium one has to be asked for.
  zone_redundancy_enabled = var.registry.sku == "Premium"
  admin_enabled           = false
  anonymous_pull_enabled  = false
  tags                    = var.tags
}

resource "azurerm_role_assignment" "pull" {
  scope                = azurerm_container_registry.this.id
  role_definition_name = "AcrPull"
  principal_id         = azurerm_user_assigned_identity.kubelet.principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_role_assignment" "admins" {
  for_each             = var.admins
  scope                = azurerm_kubernetes_cluster.this.id
  role_definition_name = "Azure Kubernetes Service RBAC Cluster Admin"
  principal_id         = each.value
}

# Custom resources (the ServiceMonitor) are in no smaller built-in role.
resource "azurerm_role_assignment" "deployers" {
  for_each             = var.deployers
  scope                = "${azurerm_kubernetes_cluster.this.id}/namespaces/${var.namespace}"
  role_definition_name = "Azure Kubernetes Service RBAC Cluster Admin"
  principal_id         = each.value
}

# To read how the cluster is reached: az aks get-credentials.
resource "azurerm_role_assignment" "users" {
  for_each             = merge(var.admins, var.deployers)
  scope                = azurerm_kubernetes_cluster.this.id
  role_definition_name = "Azure Kubernetes Service Cluster User Role"
  principal_id         = each.value
}

resource "azurerm_role_assignment" "push" {
  for_each             = merge(var.admins, var.deployers)
  scope                = azurerm_container_registry.this.id
  role_definition_name = "AcrPush"
  principal_id         = each.value
}
