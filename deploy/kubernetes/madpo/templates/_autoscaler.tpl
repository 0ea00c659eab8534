{{/* Mean wait of a request in the queue of the reward service, in seconds; 0 while nobody asks. */}}
{{- define "madpo.queueWaitQuery" -}}
{{- $selector := printf "phase=\"queue\",namespace=\"%s\"" .Release.Namespace -}}
sum(rate(madpo_reward_score_duration_seconds_sum{ {{- $selector -}} }[2m])) / clamp_min(sum(rate(madpo_reward_score_duration_seconds_count{ {{- $selector -}} }[2m])), 1e-9)
{{- end -}}

{{/* Evaluations waiting or running: an evaluator at work must not look like one that is not needed. */}}
{{- define "madpo.evaluationsQuery" -}}
{{- $selector := printf "queue=\"evaluate\",namespace=\"%s\"" .Release.Namespace -}}
max(madpo_queue_depth{ {{- $selector -}} }) + (sum(madpo_worker_job_info{ {{- $selector -}} }) or vector(0))
{{- end -}}

{{- define "madpo.autoscaler" -}}
{{- $scaling := (index .root.Values .component).autoscaling -}}
{{- $name := include "madpo.componentName" . -}}
{{- if lt (int $scaling.maxReplicas) (int $scaling.minReplicas) }}
{{- fail (printf "%s.autoscaling.maxReplicas (%d) must be at least minReplicas (%d)" .component (int $scaling.maxReplicas) (int $scaling.minReplicas)) }}
{{- end }}
{{- if eq $scaling.kind "hpa-prometheus-adapter" }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $name }}
  labels: {{- include "madpo.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  minReplicas: {{ $scaling.minReplicas }}
  maxReplicas: {{ $scaling.maxReplicas }}
  metrics:
    - type: External
      external:
        metric: {name: {{ .metric }}}
        target: {type: {{ .targetType }}, {{ untitle .targetType }}: {{ .target | quote }}}
  behavior: {{- include "madpo.scalingBehavior" . | nindent 4 }}
{{- else if eq $scaling.kind "keda" }}
{{- $prometheus := .root.Values.metrics.prometheus }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ $name }}
  labels: {{- include "madpo.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ $name }}}
  minReplicaCount: {{ $scaling.minReplicas }}
  maxReplicaCount: {{ $scaling.maxReplicas }}
  pollingInterval: 15
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {{- include "madpo.scalingBehavior" . | nindent 8 }}
  triggers:
    - type: prometheus
      metricType: {{ .targetType }}
      metadata:
        serverAddress: {{ required (printf "metrics.prometheus.serverAddress is required for %s.autoscaling.kind=keda: the URL at which KEDA reaches Prometheus" .component) $prometheus.serverAddress | quote }}
        query: {{ .query | quote }}
        threshold: {{ .target | quote }}
        ignoreNullValues: "false"
      {{- with $prometheus.triggerAuthentication }}
      authenticationRef: {name: {{ . }}}
      {{- end }}
{{- end }}
{{- end -}}

{{/* Up in small steps, since a new pod helps only once its model is loaded; down slowly, one at a time. */}}
{{- define "madpo.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Pods, value: {{ .scaleUpPods }}, periodSeconds: 60}]
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownSeconds }}
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end -}}
