{{/* Every template begins with the name, so that what is missing is said before one fails for it. It
is the newest value that is looked for. */}}
{{- define "athensctl.fullname" -}}
{{- if not (hasKey .Values.crawler.keda "authenticationRef") }}
{{- fail "values are missing that this chart has defaults for: helm upgrade --reuse-values takes those of the chart before; --reset-then-reuse-values takes the defaults of this one, with your values on top" }}
{{- end -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{/* Labels of objects; with a role, which selects its pods too: (list $ "proxy"). */}}
{{- define "athensctl.selector" -}}
app.kubernetes.io/name: {{ default (index . 0).Chart.Name (index . 0).Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
{{- if index . 1 }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}
{{- end }}

{{- define "athensctl.labels" -}}
{{ include "athensctl.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The roles that run, in the order they are needed. */}}
{{- define "athensctl.roles" -}}
storage{{ if ne .Values.networkMode "offline" }},crawler{{ end }},proxy
{{- end }}

{{- define "athensctl.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "athensctl.tokenSecret" -}}
{{ default (printf "%s-token" (include "athensctl.fullname" .)) .Values.internalToken.existingSecret }}
{{- end }}

{{- define "athensctl.tokenKey" -}}
{{ if .Values.internalToken.existingSecret }}{{ .Values.internalToken.key }}{{ else }}token{{ end }}
{{- end }}

{{/* The token: what is given, what the release has already, or a new one, which is the same in every template. */}}
{{- define "athensctl.token" -}}
{{- $t := .Values.internalToken }}
{{- if and (not $t.value) (not (hasKey $t "made")) }}
{{- $old := lookup "v1" "Secret" .Release.Namespace (include "athensctl.tokenSecret" .) }}
{{- $_ := set $t "made" (dig "data" "token" "" $old | b64dec | default (randAlphaNum 40)) }}
{{- end }}
{{- default $t.made $t.value }}
{{- end }}

{{/* A checksum of the Secrets that a role reads when it starts: (list $ "proxy"). Another
content, and helm upgrade makes new pods. Without a cluster (helm template) only the token
that is given is known. */}}
{{- define "athensctl.secrets" -}}
{{- $root := index . 0 }}{{ $role := index . 1 }}{{ $v := $root.Values }}
{{- $sum := $root.Release.Namespace }}
{{- if not $v.internalToken.existingSecret }}{{ $sum = printf "%s token %s" $sum (include "athensctl.token" $root) }}{{ end }}
{{- $names := list $v.internalToken.existingSecret $v.tracing.headersSecret }}
{{- if eq $role "storage" }}{{ $names = append $names $v.store.existingSecret }}
{{- else }}{{ $names = append $names $v.webhook.existingSecret }}{{ end }}
{{- if eq $role "crawler" }}{{ $names = append (append $names $v.vcs.existingSecret) $v.vcs.sshSecret }}{{ end }}
{{- if eq $role "proxy" }}{{ $names = append $names $v.requireHeader.existingSecret }}{{ end }}
{{- range $name := compact $names }}
{{- $sum = printf "%s %s %s" $sum $name (dig "data" dict (lookup "v1" "Secret" $root.Release.Namespace $name) | toJson) }}
{{- end }}
{{- sha256sum $sum }}
{{- end }}

{{- define "athensctl.serviceAccount" -}}
{{- $root := index . 0 }}{{- $role := index . 1 -}}
{{ default (printf "%s-%s" (include "athensctl.fullname" $root) $role) (index $root.Values $role).serviceAccount.name }}
{{- end }}

{{/* The port of a URL. */}}
{{- define "athensctl.port" -}}
{{- $url := urlParse . }}
{{- default (eq $url.scheme "http" | ternary "80" "443") (regexFind ":[0-9]+$" $url.host | trimPrefix ":") }}
{{- end }}

{{/* A quantity as text. A whole number of a values file is a float64 here: 8.589934592e+09. */}}
{{- define "athensctl.quantity" -}}
{{ if kindIs "float64" . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* A quantity of memory in MiB: 512Mi, 1Gi, 1.5G, bytes. */}}
{{- define "athensctl.mebibytes" -}}
{{- $q := include "athensctl.quantity" . }}
{{- $units := dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "k" 1000.0 "M" 1000000.0 "G" 1000000000.0 "T" 1000000000000.0 }}
{{- $number := regexFind "^[0-9.]+" $q }}
{{- $unit := regexFind "[A-Za-z]*$" $q }}
{{- if and $unit (not (hasKey $units $unit)) }}{{ fail (printf "resources: %q is not a quantity of memory such as 512Mi" $q) }}{{ end }}
{{- $factor := 1.0 }}{{ if $unit }}{{ $factor = get $units $unit }}{{ end }}
{{- divf (mulf (float64 $number) $factor) 1048576.0 | floor | int }}
{{- end }}

{{/* The configuration file of a role, as a dictionary in YAML: (list $ "proxy"). */}}
{{- define "athensctl.config" -}}
{{- $root := index . 0 }}{{ $role := index . 1 }}{{ $v := $root.Values }}
{{- $name := include "athensctl.fullname" $root }}
{{- $c := dict "role" $role "listen" ":3000" "network-mode" $v.networkMode
      "drain-delay" (printf "%ds" (int $v.drainSeconds)) "drain-timeout" (printf "%ds" (int $v.drainTimeoutSeconds)) "log-format" "json" }}
{{- if eq $role "storage" }}
{{- $_ := set $c "store" $v.store.type }}
{{- /* Where there is one replica nobody is sent elsewhere meanwhile: the next pod waits for this one's end. */}}
{{- if ne $v.store.type "cosmos" }}{{ $_ := set $c "drain-delay" "0s" }}{{ end }}
{{- if eq $v.store.type "cosmos" }}
{{- $_ := set $c "cosmos-database" $v.store.cosmos.database }}
{{- with $v.store.cosmos.endpoint }}{{ $_ := set $c "cosmos-endpoint" . }}{{ end }}
{{- with $v.store.cosmos.regions }}{{ $_ := set $c "cosmos-regions" . }}{{ end }}
{{- with int $v.store.cosmos.backgroundUnits }}{{ $_ := set $c "cosmos-background-units" (div . (int $v.storage.replicas)) }}{{ end }}
{{- with $v.store.blob.endpoint }}{{ $_ := set $c "blob-endpoint" . }}{{ end }}
{{- $_ := set $c "blob-container" $v.store.blob.container }}
{{- end }}
{{- else }}
{{- $_ := set $c "storage-url" (printf "http://%s-storage:3000" $name) }}
{{- end }}
{{- if and (eq $role "proxy") (ne $v.networkMode "offline") }}
{{- $_ := set $c "crawler-url" (printf "http://%s-crawler:3000" $name) }}
{{- end }}
{{- if eq $role "proxy" }}
{{- /* Nine tenths of the volume: the kubelet evicts a pod that fills it. */}}
{{- $_ := set $c "cache-max-bytes" (printf "%dMiB" (div (mul 9 (include "athensctl.mebibytes" $v.proxy.cacheSize | int)) 10)) }}
{{- end }}
{{- if eq $role "crawler" }}
{{- with $v.upstream }}{{ $_ := set $c "upstream" . }}{{ end }}
{{- $_ := set $c "inflight-max-bytes" (printf "%dMiB" (div (include "athensctl.mebibytes" $v.crawler.spoolSize | int) 2)) }}
{{- end }}
{{- with $v.tracing.endpoint }}
{{- $_ := set $c "otlp-endpoint" . }}
{{- $_ := set $c "trace-sample" $v.tracing.sample }}
{{- end }}
{{- with $v.private }}{{ $_ := set $c "private" . }}{{ end }}
{{- with $v.sumdb }}{{ $_ := set $c "sumdb" . }}{{ end }}
{{- range $k, $x := $v.settings }}{{ $_ := set $c $k $x }}{{ end }}
{{- toYaml $c }}
{{- end }}
