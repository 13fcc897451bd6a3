#!/usr/bin/env bash
# show.sh [one|three]...: the real go command gets real modules through athensctl, with the
# checksum database on: as one process and as three roles; with upstream gone; after a
# restart. Each step with its time and exit status; the first that fails ends it, with 1.
#
# What it takes can be chosen; a mirror that has not everything may need it:
#   SHOW_GOMOD    the go.mod whose modules are downloaded (this repository's)
#   SHOW_MODULES  how many they are at least (80)
#   SHOW_LATEST   the module of go get x@latest and go list -m -versions
#   SHOW_CMD      the program of go install cmd@version
#   SHOW_UPSTREAM, SHOW_SUMDB   upstream and checksum database (what go env GOPROXY and GOSUMDB
#                 say, but for ",direct": no git host is needed)
#   SHOW_PORT     the first of three free ports
#
# As three roles, the proxy runs in a network namespace that has no route but to this host,
# where the other two are. That needs root (or a sudo that asks nothing) and ip; without
# them it runs beside the others, and the last line says what was not shown.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin

gomod=${SHOW_GOMOD:-$PWD/go.mod}
modules=${SHOW_MODULES:-80}
latest=${SHOW_LATEST:-golang.org/x/text}
cmd=${SHOW_CMD:-golang.org/x/tools/cmd/stringer@v0.40.0}
upstream=$(go env GOPROXY)
upstream=${SHOW_UPSTREAM:-${upstream%[,|]direct}}
sumdb=${SHOW_SUMDB:-$(go env GOSUMDB)}
port=${SHOW_PORT:-39470}
away=http://127.0.0.1:1 # a port of loopback where nobody listens

dir=$(mktemp -d)
pids=()
space=
missed=
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)

stop() { # ends what serve started, the last first
	local i
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		kill "${pids[i]}" 2>/dev/null || continue
		wait "${pids[i]}" || { echo "a role ended with exit status $? after SIGTERM" >&2; return 1; }
	done
	pids=()
}
clean() {
	local status=$?
	trap - EXIT
	stop || status=1
	[ -z "$space" ] || "${as_root[@]}" ip netns delete "$space" || true
	if [ "$status" != 0 ]; then
		tail -n 5 "$dir"/*.log >&2 || true
		echo "== show: FAILED" >&2
	fi
	rm -rf "$dir"
	exit "$status"
}
trap clean EXIT
trap 'exit 1' INT TERM

# step NAME COMMAND...: its output is shown when it fails.
step() {
	local name=$1 began=$EPOCHREALTIME status=0 took
	shift
	"$@" >"$dir/out.log" 2>&1 || status=$?
	took=$(awk -v a="${began/,/.}" -v b="${EPOCHREALTIME/,/.}" 'BEGIN {printf "%.1f", b - a}')
	printf '%7s s  exit %d  %s\n' "$took" "$status" "$name"
	[ "$status" = 0 ] || { tail -n 30 "$dir/out.log" >&2; exit 1; }
}

# fresh runs the go command in a folder of $dir as a machine would that has Go alone: with
# an empty module cache, athensctl as its only proxy, and the checksum database on.
fresh() {
	local at=$1
	shift
	rm -rf "$dir/cache" "$dir/gobin"
	env -C "$dir/$at" GOPROXY="$proxy" GOSUMDB="$sumdb" GOMODCACHE="$dir/cache" GOBIN="$dir/gobin" GOFLAGS="-modcacherw -mod=mod" \
		GOENV=off GOWORK=off GONOPROXY= GONOSUMDB= GOPRIVATE= GOVCS='*:off' "$@"
}
has() { # TEXT: the step before said so
	grep -qF -- "$1" "$dir/out.log" || { echo "the output has no \"$1\":" >&2; tail -n 5 "$dir/out.log" >&2; exit 1; }
}

# download has no go.sum, so that every hash is looked up in the checksum database.
download() {
	rm -f "$dir/main/go.sum"
	fresh main go mod download all
	local zips
	zips=$(find "$dir/cache/cache/download" -name '*.zip' | wc -l)
	[ "$zips" -ge "$modules" ] || { echo "$zips modules were downloaded, fewer than $modules"; return 1; }
	local tiles
	tiles=$(find "$dir/cache/cache/download/sumdb" -type f | wc -l)
	[ "$tiles" -gt 0 ] || { echo "the checksum database was not asked"; return 1; }
	echo "$zips modules, $tiles files of the checksum database"
}
get() {
	rm -rf "$dir/new"
	mkdir "$dir/new"
	fresh new go mod init example.com/show
	fresh new go get "$latest@latest"
	cat "$dir/new/go.mod"
}
install() {
	fresh new go install "$cmd"
	ls "$dir/gobin"
}
commands() {
	step "go mod download all, empty module cache" download
	echo "                    $(tail -n 1 "$dir/out.log")"
	step "go list -m -versions $latest" fresh main go list -m -versions "$latest"
	has "$latest v"
	step "go list -m -u all" fresh main go list -m -u all
	step "go get $latest@latest" get
	has "require $latest v"
	step "go install $cmd" install
}

# role NAME ROLE ARGUMENTS...: starts one process.
role() {
	local name=$1 what=$2 under=()
	shift 2
	[ "$what" != proxy ] || [ -z "$space" ] || under=("${as_root[@]}" ip netns exec "$space")
	"${under[@]}" "$dir/athensctl" serve --role="$what" --data-dir="$dir/$name" --log-level=warn "$@" 2>>"$dir/$name.log" &
	pids+=($!)
}
ready() { # HOST PORT
	local i
	for ((i = 0; i < 300; i++)); do
		if (exec 3<>"/dev/tcp/$1/$2" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && grep -q '200 OK' <&3) 2>/dev/null; then
			return
		fi
		sleep 0.1
	done
	echo "http://$1:$2 is not ready after 30 s"
	return 1
}

# serve UPSTREAM SUMDB [ARGUMENT]: starts the layout; what it keeps stays from
# one to the next. Offline there is no crawler.
serve() {
	local all=(--sumdb="$2" "${@:3}") to=(--storage-url="http://$host:$((port + 1))")
	proxy=http://$proxy_host:$port
	if [ "$layout" = one ]; then
		role all all --listen="$proxy_host:$port" --upstream="$1" "${all[@]}"
	else
		role storage storage --listen="$host:$((port + 1))"
		step "storage is ready" ready "$host" $((port + 1))
		if [ "${3:-}" != --network-mode=offline ]; then
			role crawler crawler --listen="$host:$((port + 2))" --upstream="$1" "${all[@]}" "${to[@]}"
			step "crawler is ready" ready "$host" $((port + 2))
			to+=(--crawler-url="http://$host:$((port + 2))")
		fi
		role proxy proxy --listen="$proxy_host:$port" "${all[@]}" "${to[@]}"
	fi
	step "serve is ready" ready "$proxy_host" "$port"
}

# namespace makes a network namespace with one link, to this host, and no other route. It runs
# in a condition, where set -e is off.
namespace() {
	local n=$((RANDOM % 250))
	command -v ip && "${as_root[@]}" true || return 1
	space=athensctl-show-$$
	host=10.213.$n.1 proxy_host=10.213.$n.2
	"${as_root[@]}" ip netns add "$space" &&
	"${as_root[@]}" ip link add "acs$n" type veth peer name eth0 netns "$space" &&
	"${as_root[@]}" ip addr add "$host/30" dev "acs$n" &&
	"${as_root[@]}" ip link set "acs$n" up &&
	"${as_root[@]}" ip -n "$space" link set lo up &&
	"${as_root[@]}" ip -n "$space" addr add "$proxy_host/30" dev eth0 &&
	"${as_root[@]}" ip -n "$space" link set eth0 up
}
no_way_out() { # 192.0.2.1 stands for the rest of the world (RFC 5737)
	"${as_root[@]}" ip -n "$space" route
	[ -z "$("${as_root[@]}" ip -n "$space" route show default)" ] || return 1
	local out
	out=$("${as_root[@]}" ip netns exec "$space" bash -c 'exec 3<>/dev/tcp/192.0.2.1/443' 2>&1) && return 1
	echo "$out"
	[[ $out == *"Network is unreachable"* ]]
}

go version
mkdir "$dir/main"
cp "$gomod" "$dir/main/go.mod"
step "go build" go build -o "$dir/athensctl" .
[ $# -gt 0 ] || set -- one three
for layout; do
	host=127.0.0.1 proxy_host=127.0.0.1
	mkdir "$dir/new"
	case $layout in
	one) echo "== one process" ;;
	three)
		echo "== three processes"
		ATHENSCTL_INTERNAL_TOKEN=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
		export ATHENSCTL_INTERNAL_TOKEN
		if namespace >/dev/null 2>&1; then
			step "the proxy's network namespace has no way out" no_way_out
		elif [ -n "$space" ]; then
			echo "the network namespace could not be made" >&2
			exit 1
		else
			missed="; NOT shown, for want of root or ip: the proxy in a network namespace"
		fi
		;;
	*) echo "$layout: one or three" >&2; exit 2 ;;
	esac
	serve "$upstream" "$sumdb"
	commands
	step "SIGTERM to all, exit 0" stop
	echo "-- upstream and the checksum database are gone: $away"
	gone="${sumdb%% *} $away"
	serve "$away" "$gone" --freshness=1s # as if it were much later
	commands
	step "SIGTERM to all, exit 0" stop
	echo "-- after a restart, in network mode offline"
	serve "$away" "$gone" --network-mode=offline
	commands
	step "SIGTERM to all, exit 0" stop
	rm -rf "$dir/all" "$dir/storage" "$dir/crawler" "$dir/proxy" "$dir/new"
done
echo "== show: all of it works${missed}"
