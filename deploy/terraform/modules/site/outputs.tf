output "helm_values" {
  description = "Values of the chart, in YAML: helm install … -f charts/athensctl/ci/aks-values.yaml -f this."
  value = yamlencode({
    fullnameOverride = local.release
    image            = { repository = "${module.aks.registry}/athensctl" }
    store = {
      type   = "cosmos"
      cosmos = module.data.cosmos
      blob   = module.data.blob
    }
    storage       = { serviceAccount = { annotations = { "azure.workload.identity/client-id" = module.data.storage_client_id } } }
    requireHeader = { existingSecret = "athensctl-front-door" }
    service = {
      type = var.private_link ? "LoadBalancer" : "ClusterIP"
      annotations = { for k, v in {
        load-balancer-internal        = "true"
        load-balancer-internal-subnet = module.network.entrance_subnet.name
        load-balancer-ipv4            = module.network.entrance_subnet.address
        pls-create                    = "true"
        pls-name                      = local.private_link
        pls-ip-configuration-subnet   = module.network.entrance_subnet.name
        # Anybody may ask for a connection, and nobody has one before it is approved.
        pls-visibility = "*"
      } : "service.beta.kubernetes.io/azure-${k}" => v if var.private_link }
    }
    ingress = {
      enabled   = !var.private_link
      hosts     = compact([var.origin_host_name])
      tlsSecret = var.private_link ? "" : "athensctl-tls"
    }
    # Managed Prometheus reads its own kind of ServiceMonitor, and has the alerts from here.
    metrics = {
      serviceMonitor = { enabled = true, apiVersion = "azmonitoring.coreos.com/v1" }
      rules          = { enabled = false }
    }
    networkPolicy = { metricsFrom = [{ namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = "kube-system" } } }] }
  })
}

output "require_header" {
  description = "Content of the Secret athensctl-front-door, key header."
  value       = module.frontdoor.require_header
}

output "url" {
  description = "What goes into GOPROXY."
  value       = module.frontdoor.url
}

output "dns_records" {
  description = "Records to make where host_name's zone is."
  value       = module.frontdoor.dns_records
}

output "registry" {
  description = "Host of the registry."
  value       = module.aks.registry
}

output "cluster" {
  description = "The cluster and its resource group, for az aks get-credentials; its nodes' resource group, and the private link service in it."
  value = {
    name                 = module.aks.name
    resource_group       = azurerm_resource_group.this.name
    node_resource_group  = module.aks.node_resource_group.name
    namespace            = var.namespace
    private_link_service = var.private_link ? local.private_link : null
  }
}

output "query_endpoint" {
  description = "Where Grafana and others ask for metrics."
  value       = module.monitor.query_endpoint
}

output "traces_connection_string" {
  description = "Connection string of Application Insights, for the exporter of an OpenTelemetry collector."
  value       = module.monitor.traces_connection_string
  sensitive   = true
}
