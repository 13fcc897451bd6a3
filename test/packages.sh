#!/usr/bin/env bash
# packages.sh [cluster]: installs the Debian packages that the tests need, or those
# that the test cluster needs, where their program is missing. Without root (or a sudo
# that asks nothing) it says what to install.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

for program in go git; do
	command -v "$program" >/dev/null || { echo "$program is missing: install it first" >&2; exit 1; }
done

missing=()
need() { # PROGRAM PACKAGE...
	command -v "$1" >/dev/null || missing+=("${@:2}")
}
need ip iproute2
need unshare util-linux
need mount mount
need nginx nginx-light
if [ "${1:-}" = cluster ]; then
	need etcd etcd-server
	need containerd containerd
	need runc runc
	need iptables iptables
	need conntrack conntrack
	need dnsmasq dnsmasq-base
	need openssl openssl
	need buildah buildah
	need busybox busybox-static
	need varnishd varnish
	need sysctl procps
	need python3 python3
	[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
else
	need make make
	need gcc gcc libc6-dev # go test -race links with it
	need strace strace
	need ssh openssh-client # the go command's, in the tests of git over SSH
	need python3 python3
	need shellcheck shellcheck
	need jq jq
fi
[ ${#missing[@]} -gt 0 ] || { echo "nothing is missing"; exit 0; }

command -v apt-get >/dev/null || { echo "missing: ${missing[*]} (Debian's names); there is no apt-get here" >&2; exit 1; }
as_root=(env)
if [ "$(id -u)" != 0 ]; then
	as_root=(sudo -n)
	sudo -n true 2>/dev/null || {
		echo "missing, and only root can install it: apt-get update && apt-get install ${missing[*]}" >&2
		exit 1
	}
fi
# RUNLEVEL=1: no package starts its service.
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null; }
echo "installing ${missing[*]}"
apt update
apt install -y --no-install-recommends "${missing[@]}"
