{{- define "madpo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: names of pods, Services and revisions are made from it and end at 63. */}}
{{- define "madpo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "madpo.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Arguments of the templates below: a dict of `root` (the chart's context) and `component`. */}}
{{- define "madpo.componentName" -}}
{{ include "madpo.fullname" .root }}-{{ .component }}
{{- end -}}

{{- define "madpo.releaseLabels" -}}
app.kubernetes.io/name: {{ include "madpo.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "madpo.selectorLabels" -}}
{{ include "madpo.releaseLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "madpo.labels" -}}
{{ include "madpo.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "madpo.image" -}}
{{- $own := (index .root.Values .component).image -}}
{{- if $own -}}
{{- $own -}}
{{- else -}}
{{- $image := .root.Values.image -}}
{{- $registry := required "image.registry is required: where madpo/gateway, madpo/reward, madpo/trainer and madpo/evaluator were pushed, e.g. registry.example.com/team" $image.registry -}}
{{- printf "%s/madpo/%s:%s" (trimSuffix "/" $registry) .component (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "madpo.hasTls" -}}
{{- if (index .root.Values .component).tls.secretName }}true{{ end -}}
{{- end -}}

{{- define "madpo.isWorker" -}}
{{- if has .component (list "trainer" "evaluator") }}true{{ end -}}
{{- end -}}

{{/* Who calls the reward service. A gateway without a certificate cannot where one is asked for, and scores nothing. */}}
{{- define "madpo.asksReward" -}}
{{- $isShut := and .root.Values.reward.tls.requireClientCertificate (not (include "madpo.hasTls" .)) -}}
{{- if or (include "madpo.isWorker" .) (and (eq .component "gateway") (not $isShut)) }}true{{ end -}}
{{- end -}}

{{/* A pod must outlive its preStop sleep, the drain of its calls and the checkpoint of its run, and then some. */}}
{{- define "madpo.terminationGracePeriodSeconds" -}}
{{- add .root.Values.drainSeconds (default 0 (index .root.Values .component).stopGraceSeconds) 15 -}}
{{- end -}}

{{- define "madpo.redisUrl" -}}
{{- $redis := .Values.redis -}}
{{- $sentinel := $redis.sentinel -}}
{{- if $sentinel.hosts -}}
{{- $primary := required "redis.sentinel.primary is required: the name the sentinels have for the primary" $sentinel.primary -}}
{{- printf "%s+sentinel://%s/%s/%d" (ternary "rediss" "redis" $redis.tls) (join "," $sentinel.hosts) $primary (int $redis.db) -}}
{{- else -}}
{{- $host := required "redis.host is required, or redis.sentinel.hosts: the chart brings no Redis; give one with AOF on and maxmemory-policy noeviction" $redis.host -}}
{{- printf "%s://%s:%d/%d" (ternary "rediss" "redis" $redis.tls) $host (int $redis.port) (int $redis.db) -}}
{{- end -}}
{{- end -}}

{{- define "madpo.sentinelPorts" -}}
{{- $ports := list -}}
{{- range .Values.redis.sentinel.hosts -}}
{{- $ports = append $ports (int (splitList ":" . | last)) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{- define "madpo.s3Endpoint" -}}
{{- required "s3.endpoint is required: https://host:port of an S3 server that honours conditional writes; the chart brings none" .Values.s3.endpoint -}}
{{- end -}}

{{- define "madpo.s3Port" -}}
{{- $url := urlParse (include "madpo.s3Endpoint" .) -}}
{{- if regexMatch ":[0-9]+$" $url.host -}}
{{- regexFind "[0-9]+$" $url.host -}}
{{- else -}}
{{- ternary "443" "80" (eq $url.scheme "https") -}}
{{- end -}}
{{- end -}}

{{/* Numbers as the services parse them: Helm itself would write 2147483648 as 2.147483648e+09. */}}
{{- define "madpo.envValue" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ toJson . | quote }}{{ end -}}
{{- end -}}
