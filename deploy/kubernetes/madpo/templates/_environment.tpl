{{/* The settings of each service, as environment variables. Secrets are files: see madpo.secretItems. */}}
{{- define "madpo.env" -}}
{{- $values := index .root.Values .component -}}
{{- $prefix := printf "MADPO_%s" (upper .component) -}}
- {name: HOME, value: /tmp}
- {name: MADPO_SECRETS_DIR, value: /run/secrets/madpo}
- {name: {{ $prefix }}_HOST, value: "0.0.0.0"}
- {name: {{ $prefix }}_PORT, value: "50051"}
- {name: {{ $prefix }}_METRICS_PORT, value: "9464"}
- {name: {{ $prefix }}_LOG_LEVEL, value: {{ .root.Values.log.level }}}
- {name: {{ $prefix }}_LOG_FORMAT, value: {{ .root.Values.log.format }}}
- {name: {{ $prefix }}_GRACE_S, value: {{ .root.Values.drainSeconds | quote }}}
{{- with .root.Values.s3 }}
- {name: {{ $prefix }}_STORE_URL, value: {{ printf "s3://%s/%s" .bucket .prefix | trimSuffix "/" | quote }}}
- {name: {{ $prefix }}_S3_ENDPOINT, value: {{ include "madpo.s3Endpoint" $.root | quote }}}
- {name: {{ $prefix }}_S3_REGION, value: {{ .region | quote }}}
{{- end }}
{{- if ne .component "gateway" }}
- {name: {{ $prefix }}_DEVICE, value: {{ if $values.gpu.count }}cuda{{ else }}cpu{{ end }}}
{{- end }}
{{- if ne .component "reward" }}
- {name: {{ $prefix }}_REDIS_URL, value: {{ include "madpo.redisUrl" .root | quote }}}
- {name: {{ $prefix }}_REDIS_NAMESPACE, value: {{ .root.Values.redis.namespace | quote }}}
- {name: {{ $prefix }}_LEASE_S, value: {{ .root.Values.redis.leaseSeconds | quote }}}
{{- end }}
{{- if include "madpo.hasTls" . }}
- {name: {{ $prefix }}_TLS_CERT, value: /run/tls/tls.crt}
- {name: {{ $prefix }}_TLS_KEY, value: /run/tls/tls.key}
{{- if $values.tls.requireClientCertificate }}
- {name: {{ $prefix }}_TLS_CLIENT_CA, value: /run/tls/ca.crt}
{{- end }}
{{- end }}
{{- include (printf "madpo.%s.env" .component) . }}
{{- range $name, $value := $values.settings }}
- {name: {{ $prefix }}_{{ upper $name }}, value: {{ include "madpo.envValue" $value }}}
{{- end }}
{{- range $values.extraEnv }}
- {name: {{ .name }}, value: {{ .value | quote }}}
{{- end }}
{{- end -}}

{{- define "madpo.gateway.env" }}
- {name: MADPO_GATEWAY_SCRATCH, value: /scratch}
{{- if not (include "madpo.hasTls" .) }}
{{- if not .root.Values.gateway.allowPlaintext }}
{{- fail "gateway.tls.secretName is required: a kubernetes.io/tls Secret for the gateway's name. Without TLS the client token travels in the clear; where something in front of the gateway encrypts, set gateway.allowPlaintext=true" }}
{{- end }}
- {name: MADPO_GATEWAY_ALLOW_PLAINTEXT, value: "true"}
{{- end }}
{{- if include "madpo.asksReward" . }}
{{- include "madpo.rewardClient.env" . }}
{{- end }}
{{- end -}}

{{- define "madpo.reward.env" }}
- {name: MADPO_REWARD_CACHE, value: /scratch}
{{- end -}}

{{- define "madpo.worker.env" }}
{{- $prefix := printf "MADPO_%s" (upper .component) }}
- {name: {{ $prefix }}_WORKSPACE, value: /scratch}
- {name: {{ $prefix }}_STOP_GRACE_S, value: {{ (index .root.Values .component).stopGraceSeconds | quote }}}
{{- include "madpo.rewardClient.env" . }}
{{- if .root.Values.reward.tls.secretName }}
{{- if and .root.Values.reward.tls.requireClientCertificate (not (include "madpo.hasTls" .)) }}
{{- fail (printf "%s.tls.secretName is required: reward.tls.requireClientCertificate lets in only clients with a certificate" .component) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "madpo.rewardClient.env" }}
{{- $prefix := printf "MADPO_%s" (upper .component) }}
- {name: {{ $prefix }}_REWARD_TARGET, value: "dns:///{{ include "madpo.rewardHost" .root }}:50051"}
{{- if .root.Values.reward.tls.secretName }}
- {name: {{ $prefix }}_TLS_CA, value: /run/reward-ca/ca.crt}
{{- end }}
{{- end -}}

{{- define "madpo.evaluator.env" }}
{{- include "madpo.worker.env" . }}
{{- end -}}

{{/* `group` is the number of the trainer this pod is a node of; only set when a trainer has several nodes. */}}
{{- define "madpo.trainer.env" }}
{{- include "madpo.worker.env" . }}
{{- if hasKey . "group" }}
{{- $name := include "madpo.componentName" . }}
- {name: MADPO_TRAINER_NNODES, value: {{ .root.Values.trainer.nnodes | quote }}}
- name: MADPO_TRAINER_NODE_RANK
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
- {name: MADPO_TRAINER_MASTER_ADDR, value: {{ $name }}-{{ .group }}-0.{{ $name }}.{{ .root.Release.Namespace }}.svc}
- {name: MADPO_TRAINER_MASTER_PORT, value: {{ .root.Values.trainer.masterPort | quote }}}
{{- end }}
{{- end -}}

{{- define "madpo.rewardHost" -}}
{{ include "madpo.componentName" (dict "root" . "component" "reward") }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Which keys of the Secret become which files: the names the settings look for. */}}
{{- define "madpo.secretItems" -}}
{{- $file := printf "madpo_%s" .component -}}
{{- if eq .component "gateway" }}
- {key: client_token, path: madpo_gateway_token}
{{- if include "madpo.asksReward" . }}
- {key: reward_token, path: madpo_gateway_reward_token}
{{- end }}
{{- else if eq .component "reward" }}
- {key: reward_token, path: madpo_reward_token}
{{- else }}
- {key: reward_token, path: {{ $file }}_reward_token}
{{- end }}
{{- if and .root.Values.redis.auth (ne .component "reward") }}
- {key: redis_password, path: {{ $file }}_redis_password}
{{- end }}
{{- if and .root.Values.redis.sentinel.auth (ne .component "reward") }}
- {key: redis_sentinel_password, path: {{ $file }}_redis_sentinel_password}
{{- end }}
- {key: s3_{{ .component }}_access_key, path: {{ $file }}_s3_access_key}
- {key: s3_{{ .component }}_secret_key, path: {{ $file }}_s3_secret_key}
{{- end -}}
