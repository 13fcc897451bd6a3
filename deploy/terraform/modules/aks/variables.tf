variable "name" {
  description = "Name of the site, and of the cluster."
  type        = string
}

variable "resource_group_name" {
  description = "Resource group of everything here; the nodes get one of their own."
  type        = string
}

variable "location" {
  description = "Azure region."
  type        = string
}

variable "tags" {
  description = "Tags of everything here."
  type        = map(string)
}

variable "nodes_subnet_id" {
  description = "Subnet of the nodes."
  type        = string
}

variable "entrance_subnet_id" {
  description = "Subnet in which the cluster makes the internal load balancer and the private link service."
  type        = string
}

variable "zones" {
  description = "Availability zones that the nodes are spread over."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 2 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones are ${jsonencode(var.zones)}: two or more are needed, each once, so that the loss of one is survived."
  }
}

variable "cluster" {
  description = <<-EOT
    Size of the cluster. tier: Free, or Standard, which has an uptime promise. system: nodes of the cluster's own
    pods; work: nodes of everything else. min and max are what the autoscaler may choose.
  EOT
  type = object({
    tier   = string
    system = object({ vm_size = string, min = number, max = number })
    work   = object({ vm_size = string, min = number, max = number })
  })

  validation {
    condition     = contains(["Free", "Standard"], var.cluster.tier)
    error_message = "cluster.tier is \"${var.cluster.tier}\": Free or Standard."
  }
  validation {
    condition     = alltrue([for pool in [var.cluster.system, var.cluster.work] : pool.min >= 1 && pool.max > pool.min])
    error_message = "cluster: each of system and work needs a min of 1 or more and a max above it, or there is nothing to scale."
  }
}

variable "api_server_ranges" {
  description = "Addresses that may reach the Kubernetes API: CIDR ranges of yours and of what deploys."
  type        = list(string)

  validation {
    condition     = length(var.api_server_ranges) > 0 && alltrue([for r in var.api_server_ranges : can(cidrhost(r, 0))])
    error_message = "api_server_ranges is ${jsonencode(var.api_server_ranges)}: one CIDR range or more is needed, such as 203.0.113.7/32. Without one the API would be open to the internet."
  }
  validation {
    condition     = alltrue([for r in var.api_server_ranges : try(tonumber(split("/", r)[1]) >= 8, true)])
    error_message = "api_server_ranges has a range wider than a /8: that is the internet."
  }
}

variable "admins" {
  description = "Who may do everything in the cluster: a name of your choice, and the object id in Entra ID of a group or identity."
  type        = map(string)

  validation {
    condition     = length(var.admins) > 0
    error_message = "admins is empty: the cluster has no local accounts, so nobody could ever install anything."
  }
}

variable "deployers" {
  description = "Who may push images and do everything in the namespace of the release: as admins, with names of their own."
  type        = map(string)

  validation {
    condition     = length(setintersection(keys(var.deployers), keys(var.admins))) == 0
    error_message = "deployers and admins have a name in common: ${join(", ", setintersection(keys(var.deployers), keys(var.admins)))}."
  }
}

variable "namespace" {
  description = "Namespace of the release."
  type        = string
}

variable "registry" {
  description = "The container registry. name: unique in all of Azure, letters and digits; sku: Standard or Premium."
  type        = object({ name = string, sku = string })

  validation {
    condition     = can(regex("^[a-zA-Z0-9]{5,50}$", var.registry.name))
    error_message = "registry.name is \"${var.registry.name}\": 5 to 50 letters and digits."
  }
}

variable "log_workspace_id" {
  description = "Log Analytics workspace that gets the logs of containers."
  type        = string
}
