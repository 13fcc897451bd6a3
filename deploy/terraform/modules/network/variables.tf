variable "name" {
  description = "Name of the site; resources are named after it."
  type        = string
}

variable "resource_group_name" {
  description = "Resource group of everything here."
  type        = string
}

variable "location" {
  description = "Azure region."
  type        = string
}

variable "address_space" {
  description = "Addresses of the virtual network: a /16."
  type        = string

  validation {
    condition     = can(cidrhost(var.address_space, 0)) && endswith(var.address_space, "/16")
    error_message = "address_space is \"${var.address_space}\": a /16 such as 10.40.0.0/16 is needed, which is cut into subnets."
  }
}

variable "tags" {
  description = "Tags of everything here."
  type        = map(string)
}
