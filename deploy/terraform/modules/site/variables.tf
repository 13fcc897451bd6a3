variable "name" {
  description = "Name of the site: resources are named after it, some of which have to be unique in all of Azure."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{3,18}[a-z0-9]$", var.name)) && !strcontains(var.name, "--")
    error_message = "name is \"${var.name}\": 5 to 20 small letters, digits and single hyphens, the first a letter; it becomes the name of a storage account and of a registry too."
  }
}

variable "location" {
  description = "Azure region, such as westeurope: one with availability zones."
  type        = string
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}

variable "address_space" {
  description = "Addresses of the virtual network: a /16 apart from 10.244.0.0/16 (pods) and 172.16.0.0/16 (services)."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = !contains(["10.244.0.0/16", "172.16.0.0/16"], var.address_space)
    error_message = "address_space is ${var.address_space}, which the cluster has for its pods or services."
  }
}

variable "zones" {
  description = "Availability zones that the nodes are spread over."
  type        = list(string)
  default     = ["1", "2", "3"]
}

variable "cluster" {
  description = "Size of the cluster: see modules/aks."
  type = object({
    tier   = string
    system = object({ vm_size = string, min = number, max = number })
    work   = object({ vm_size = string, min = number, max = number })
  })
}

variable "api_server_ranges" {
  description = "Addresses that may reach the Kubernetes API."
  type        = list(string)
}

variable "admins" {
  description = "Who may do everything in the cluster: names, and object ids in Entra ID."
  type        = map(string)
}

variable "deployers" {
  description = "Who may push images and deploy into the namespace: as admins."
  type        = map(string)
  default     = {}
}

variable "namespace" {
  description = "Kubernetes namespace of the release."
  type        = string
  default     = "athensctl"
}

variable "registry_sku" {
  description = "Standard or Premium."
  type        = string
  default     = "Standard"
}

variable "cosmos" {
  description = "The Cosmos DB account: see modules/data."
  type = object({
    mode           = string
    max_throughput = optional(number)
    second_region  = optional(string)
    consistency    = optional(string, "Strong")
    zone_redundant = optional(bool, false)
    backup_days    = optional(number, 7)
    account_name   = optional(string)
  })
}

variable "blob" {
  description = "The Blob Storage account: see modules/data."
  type        = object({ replication = string, deleted_days = optional(number, 14) })
}

variable "lock" {
  description = "Whether the accounts with the modules are locked against deletion."
  type        = bool
}

variable "host_name" {
  description = "Name under which the proxy is public; null: the one that Front Door gives."
  type        = string
  default     = null
}

variable "publish" {
  description = "Whether Front Door sends requests on to the cluster. With private_link the chart has to be installed first: the private link service is made with it."
  type        = bool
}

variable "private_link" {
  description = "Whether Front Door comes through a private link (Front Door Premium; the cluster has no address on the internet) or over the internet to origin_host_name (Standard)."
  type        = bool
  default     = true
}

variable "private_link_location" {
  description = "Region from which Front Door goes through the private link; null: location. Not every region can."
  type        = string
  default     = null
}

variable "origin_host_name" {
  description = "Without private_link: the name, with a certificate, of the cluster's ingress."
  type        = string
  default     = null

  validation {
    condition     = var.private_link == (var.origin_host_name == null)
    error_message = var.private_link ? "origin_host_name is set, but private_link is true: Front Door would not use it." : "private_link is false: origin_host_name is needed, a name on the internet at which the cluster's ingress has a certificate."
  }
}

variable "waf" {
  description = "The firewall: see modules/frontdoor."
  type = object({
    rate_limit    = optional(number, 6000)
    managed_rules = optional(string, "Log")
    webhook       = optional(bool, false)
  })
  default = {}
}

variable "logs" {
  description = "Logs and traces: days kept, GB a day at most (-1: no bound)."
  type        = object({ days = number, daily_gb = number })
}

variable "alert_emails" {
  description = "Who is written to when an alert fires: names, and addresses."
  type        = map(string)
  default     = {}
}
