{{/* Combinations that can't work, each with a sentence that says why. */}}
{{- define "athensctl.validate" -}}
{{- $v := .Values }}
{{- range list "role" "listen" "storage-listen" "crawler-listen" "data-dir" "cache-dir" "store" "storage-url" "crawler-url" "internal-token" "network-mode" "drain-delay" "drain-timeout" "require-header" "cosmos-endpoint" "cosmos-key" "cosmos-connection-string" "cosmos-database" "cosmos-regions" "cosmos-background-units" "blob-endpoint" "blob-container" "blob-connection-string" "vcs-tokens" "vcs-netrc" "vcs-ssh-key" "vcs-ssh-passphrase" "vcs-known-hosts" "otlp-endpoint" "otlp-headers" "trace-sample" "webhook-secret" "cache-max-bytes" "inflight-max-bytes" }}
{{- if hasKey $v.settings . }}{{ fail (printf "settings: %s is set by the chart, from a value of its own" .) }}{{ end }}
{{- end }}
{{- range list "upstream" "private" "sumdb" }}
{{- if hasKey $v.settings . }}{{ fail (printf "settings: %s is a value of its own: set %s" . .) }}{{ end }}
{{- end }}
{{- if and (ne $v.store.type "cosmos") (gt (int $v.storage.replicas) 1) }}
{{- fail (printf "storage.replicas is %d, but store.type %s is one process's own: use store.type=cosmos, or one replica" (int $v.storage.replicas) $v.store.type) }}
{{- end }}
{{- if eq $v.store.type "cosmos" }}
{{- if and (not $v.store.cosmos.endpoint) (not $v.store.existingSecret) }}{{ fail "store.type is cosmos: store.cosmos.endpoint is needed, or store.existingSecret with a cosmos-connection-string" }}{{ end }}
{{- if and (not $v.store.existingSecret) (not $v.storage.serviceAccount.name) (not (index (default dict $v.storage.serviceAccount.annotations) "azure.workload.identity/client-id")) }}
{{- fail "store.type is cosmos without store.existingSecret: storage.serviceAccount.annotations needs azure.workload.identity/client-id, or storage.serviceAccount.name an account that has it" }}
{{- end }}
{{- $units := int $v.store.cosmos.backgroundUnits }}
{{- if and $units (lt $units (int $v.storage.replicas)) }}{{ fail (printf "store.cosmos.backgroundUnits is %d, for %d storage replicas together: each needs one or more" $units (int $v.storage.replicas)) }}{{ end }}
{{- else }}
{{- if $v.store.cosmos.backgroundUnits }}{{ fail (printf "store.cosmos.backgroundUnits is set, but store.type is %s" $v.store.type) }}{{ end }}
{{- if $v.store.cosmos.endpoint }}{{ fail (printf "store.cosmos.endpoint is set, but store.type is %s" $v.store.type) }}{{ end }}
{{- if $v.store.blob.endpoint }}{{ fail (printf "store.blob.endpoint is set, but store.type is %s: zips go to Blob Storage with store.type=cosmos only" $v.store.type) }}{{ end }}
{{- if $v.store.existingSecret }}{{ fail (printf "store.existingSecret is set, but store.type %s has no credentials" $v.store.type) }}{{ end }}
{{- end }}
{{- if and $v.internalToken.value $v.internalToken.existingSecret }}{{ fail "internalToken has both value and existingSecret: give one" }}{{ end }}
{{- if and $v.internalToken.value (lt (len $v.internalToken.value) 16) }}{{ fail "internalToken.value has fewer than 16 characters" }}{{ end }}
{{- if and $v.internalToken.value (not (regexMatch "^[!-~]+$" $v.internalToken.value)) }}{{ fail "internalToken.value has a space, a newline or what is not ASCII, which a header can't carry" }}{{ end }}
{{- if and $v.ingress.enabled $v.httpRoute.enabled }}{{ fail "ingress and httpRoute are both enabled: choose one" }}{{ end }}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}{{ fail "ingress is enabled: ingress.hosts is needed" }}{{ end }}
{{- range list "hosts" "tlsSecret" "className" "annotations" }}
{{- if and (not $v.ingress.enabled) (get $v.ingress .) }}{{ fail (printf "ingress.%s is set, but ingress is not enabled" .) }}{{ end }}
{{- end }}
{{- range list "parentRefs" "hostnames" }}
{{- if and (not $v.httpRoute.enabled) (get $v.httpRoute .) }}{{ fail (printf "httpRoute.%s is set, but httpRoute is not enabled" .) }}{{ end }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}{{ fail "httpRoute is enabled: httpRoute.parentRefs is needed" }}{{ end }}
{{- with $v.proxy.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}{{ fail (printf "proxy.autoscaling: minReplicas %d is above maxReplicas %d" (int .minReplicas) (int .maxReplicas)) }}{{ end }}
{{- if and .enabled (not (dig "requests" "cpu" "" $v.proxy.resources)) }}{{ fail "proxy.autoscaling is by CPU: proxy.resources.requests.cpu is needed" }}{{ end }}
{{- end }}
{{- with $v.crawler.keda }}
{{- if and .enabled (not .prometheus) }}{{ fail "crawler.keda is enabled: crawler.keda.prometheus is needed, the URL of a Prometheus that has athensctl_queue_jobs" }}{{ end }}
{{- if and (not .enabled) .authenticationRef.name }}{{ fail "crawler.keda.authenticationRef is set, but crawler.keda is not enabled" }}{{ end }}
{{- if and .enabled (lt (int .minReplicas) 1) }}{{ fail "crawler.keda.minReplicas is 0: the queue is filled by crawlers, so that with none of them it never gets longer, and none would be started" }}{{ end }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}{{ fail (printf "crawler.keda: minReplicas %d is above maxReplicas %d" (int .minReplicas) (int .maxReplicas)) }}{{ end }}
{{- end }}
{{- if and (eq $v.networkMode "offline") $v.crawler.keda.enabled }}{{ fail "networkMode is offline: there is no crawler for crawler.keda to scale" }}{{ end }}
{{- if and (eq $v.networkMode "offline") $v.upstream }}{{ fail "networkMode is offline: nobody would ask upstream" }}{{ end }}
{{- if and (eq $v.networkMode "offline") $v.vcs.existingSecret }}{{ fail "networkMode is offline: nobody would ask the git hosts of vcs.existingSecret" }}{{ end }}
{{- if and (eq $v.networkMode "offline") $v.webhook.existingSecret }}{{ fail "networkMode is offline: nobody would bring in what the pushes of webhook.existingSecret tell of" }}{{ end }}
{{- if and (eq $v.networkMode "offline") $v.networkPolicy.crawlerTo }}{{ fail "networkMode is offline: there is no crawler for networkPolicy.crawlerTo" }}{{ end }}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.dnsTo) }}{{ fail "networkPolicy.dnsTo is empty: no pod could resolve a name" }}{{ end }}
{{- if and (ne $v.store.type "cosmos") $v.networkPolicy.storageTo }}{{ fail (printf "networkPolicy.storageTo is set, but store.type is %s: storage asks nobody" $v.store.type) }}{{ end }}
{{- if and (not $v.networkPolicy.enabled) $v.networkPolicy.storageTo }}{{ fail "networkPolicy.storageTo is set, but networkPolicy is not enabled: nothing is forbidden" }}{{ end }}
{{- if and (not $v.networkPolicy.enabled) $v.networkPolicy.crawlerTo }}{{ fail "networkPolicy.crawlerTo is set, but networkPolicy is not enabled: nothing is forbidden" }}{{ end }}
{{- if and (ne $v.networkMode "offline") (eq (int $v.crawler.replicas) 0) (not $v.crawler.keda.enabled) }}{{ fail "crawler.replicas is 0: nobody would bring in what is not kept; if that is meant, networkMode=offline says so" }}{{ end }}
{{- if eq (int $v.storage.replicas) 0 }}{{ fail "storage.replicas is 0: nothing could be answered" }}{{ end }}
{{- with $v.tracing }}
{{- if and .endpoint $v.networkPolicy.enabled (not .egress) }}{{ fail "tracing.endpoint is set, and networkPolicy.enabled: no pod could reach it; tracing.egress is needed, the rules that let them" }}{{ end }}
{{- if and (not .endpoint) (or .egress .headersSecret) }}{{ fail "tracing.egress and tracing.headersSecret are for tracing.endpoint, which is not set" }}{{ end }}
{{- end }}
{{- if and (eq $v.networkMode "offline") $v.vcs.sshSecret }}{{ fail "networkMode is offline: nobody would ask the git hosts of vcs.sshSecret" }}{{ end }}
{{- range $role := list "proxy" "storage" "crawler" }}
{{- $r := index $v $role }}
{{- $replicas := int $r.replicas }}
{{- if and (eq $role "proxy") $v.proxy.autoscaling.enabled }}{{ $replicas = int $v.proxy.autoscaling.minReplicas }}{{ end }}
{{- if and (eq $role "crawler") $v.crawler.keda.enabled }}{{ $replicas = int $v.crawler.keda.minReplicas }}{{ end }}
{{- if and $r.pdb.enabled (gt $replicas 1) (ge (int $r.pdb.minAvailable) $replicas) }}
{{- fail (printf "%s.pdb.minAvailable is %d, with %d replicas: no node could ever be drained" $role (int $r.pdb.minAvailable) $replicas) }}
{{- end }}
{{- $limit := dig "limits" "memory" "" $r.resources }}
{{- if and $limit (lt (include "athensctl.mebibytes" $limit | int) 96) }}{{ fail (printf "%s.resources.limits.memory is %v: 96Mi is the least" $role $limit) }}{{ end }}
{{- end }}
{{- if and (eq (int $v.proxy.replicas) 0) (not $v.proxy.autoscaling.enabled) (or $v.ingress.enabled $v.httpRoute.enabled) }}{{ fail (printf "%s is enabled, but proxy.replicas is 0" ($v.ingress.enabled | ternary "ingress" "httpRoute")) }}{{ end }}
{{- if lt (include "athensctl.mebibytes" $v.proxy.cacheSize | int) 64 }}{{ fail (printf "proxy.cacheSize is %v: 64Mi is the least" $v.proxy.cacheSize) }}{{ end }}
{{- if lt (include "athensctl.mebibytes" $v.crawler.spoolSize | int) 1024 }}{{ fail (printf "crawler.spoolSize is %s: a zip may have 500 MB, and several are fetched at once; 1Gi is the least" $v.crawler.spoolSize) }}{{ end }}
{{- if lt (include "athensctl.mebibytes" $v.storage.spoolSize | int) 1024 }}{{ fail (printf "storage.spoolSize is %s: 1Gi is the least" $v.storage.spoolSize) }}{{ end }}
{{- if and $v.store.disk.existingClaim (ne $v.store.type "disk") }}{{ fail (printf "store.disk.existingClaim is set, but store.type is %s" $v.store.type) }}{{ end }}
{{- end }}
