variable "name" {
  description = "Name of the site, and of the profile."
  type        = string
}

variable "resource_group_name" {
  description = "Resource group of everything here."
  type        = string
}

variable "tags" {
  description = "Tags of everything here."
  type        = map(string)
}

variable "host_name" {
  description = "Name under which the proxy is public, such as goproxy.example.com; null: the one that Front Door gives, NAME.azurefd.net."
  type        = string

  validation {
    condition     = var.host_name == null || can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.host_name))
    error_message = "host_name is \"${coalesce(var.host_name, "null")}\": a host name such as goproxy.example.com, without https://."
  }
}

variable "publish" {
  description = "Whether requests are sent on to the origin, which has to be there; until then Front Door answers 404."
  type        = bool
}

variable "origin" {
  description = <<-EOT
    Where the proxy is. With private_link, which makes the profile a Premium one, host is an address in the network,
    asked over http through the private link service of that id, which Front Door reaches from location. Without,
    the profile is a Standard one, and host is a name on the internet with a certificate, asked over https.
  EOT
  type = object({
    host         = string
    private_link = optional(object({ id = string, location = string }))
  })

  validation {
    condition     = var.origin.private_link != null || can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.origin.host))
    error_message = "origin.host is \"${var.origin.host}\": without private_link a host name with a certificate is needed, since requests cross the internet."
  }
  validation {
    condition     = var.origin.private_link != null || var.origin.host != coalesce(var.host_name, "-")
    error_message = "origin.host is host_name too: Front Door would ask itself."
  }
}

variable "waf" {
  description = <<-EOT
    The firewall. rate_limit: requests a minute of one address, 0 for no bound; an office or a CI behind one address
    counts as one. managed_rules: what happens to requests that Microsoft's rules find fault with, Log or Block
    (private_link only: a Standard profile has none). webhook: whether POST /webhook may pass.
  EOT
  type = object({
    rate_limit    = optional(number, 6000)
    managed_rules = optional(string, "Log")
    webhook       = optional(bool, false)
  })

  validation {
    condition     = contains(["Log", "Block"], var.waf.managed_rules)
    error_message = "waf.managed_rules is \"${var.waf.managed_rules}\": Log or Block."
  }
  validation {
    condition     = var.waf.rate_limit == 0 || var.waf.rate_limit >= 600
    error_message = "waf.rate_limit is ${var.waf.rate_limit}: one go mod download makes hundreds of requests. 600 is the least, 0 is no bound."
  }
}
