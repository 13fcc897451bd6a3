variable "name" {
  description = "Name of the site, 5 to 20 small letters, digits and hyphens: resources are named after it, some of which have to be unique in all of Azure."
  type        = string
}

variable "location" {
  description = "Azure region with availability zones, such as westeurope."
  type        = string
}

variable "api_server_ranges" {
  description = "Addresses that may reach the Kubernetes API: CIDR ranges of yours and of what deploys."
  type        = list(string)
}

variable "admins" {
  description = "Who may do everything in the cluster: a name of your choice, and the object id in Entra ID of a group or identity."
  type        = map(string)
}

variable "deployers" {
  description = "Who may push images, and do everything in the release's namespace: as admins, with names of their own."
  type        = map(string)
  default     = {}
}

variable "cosmos" {
  description = "The Cosmos DB account: mode serverless, in one region; or autoscale, with max_throughput (request units a second) and second_region. modules/data describes the rest."
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

variable "host_name" {
  description = "Name under which the proxy is public, such as goproxy.example.com; null: the one that Front Door gives."
  type        = string
  default     = null
}

variable "publish" {
  description = "Whether Front Door sends requests on to the cluster: false until the chart is installed."
  type        = bool
  default     = false
}

variable "private_link" {
  description = "Whether Front Door comes through a private link (Front Door Premium) or over the internet to origin_host_name (Standard)."
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
}

variable "waf" {
  description = "The firewall: rate_limit (requests a minute of one address, 0: no bound), managed_rules (Log or Block), webhook (whether POST /webhook may pass)."
  type = object({
    rate_limit    = optional(number, 6000)
    managed_rules = optional(string, "Log")
    webhook       = optional(bool, false)
  })
  default = {}
}

variable "alert_emails" {
  description = "Who is written to when an alert fires: a name of your choice, and an address."
  type        = map(string)
  default     = {}
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}
