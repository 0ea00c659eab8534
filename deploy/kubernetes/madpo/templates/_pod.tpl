{{/* The pod of every service. */}}
{{- define "madpo.podTemplate" -}}
{{- $values := index .root.Values .component -}}
{{- $security := .root.Values.podSecurity -}}
metadata:
  labels:
    {{- include "madpo.labels" . | nindent 4 }}
    {{- if hasKey . "group" }}
    madpo/trainer: {{ .group | quote }}
    {{- end }}
  {{- with $values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "madpo.fullname" .root }}
  automountServiceAccountToken: false
  # Service links would set MADPO_GATEWAY_PORT=tcp://... for a release named madpo: a name of our settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "madpo.terminationGracePeriodSeconds" . }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ $security.runAsUser }}
    runAsGroup: {{ $security.runAsGroup }}
    fsGroup: {{ $security.fsGroup }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "madpo.selectorLabels" . | nindent 10 }}
  containers:
    - name: {{ .component }}
      image: {{ include "madpo.image" . | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      ports:
        - {name: grpc, containerPort: 50051}
        - {name: metrics, containerPort: 9464}
      env: {{- include "madpo.env" . | nindent 8 }}
      {{- include "madpo.probes" . | nindent 6 }}
      {{- if not (include "madpo.isWorker" .) }}
      # Until everybody knows that this pod is leaving, it still takes calls.
      lifecycle:
        preStop: {exec: {command: [sleep, "5"]}}
      {{- end }}
      resources: {{- include "madpo.resources" . | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        runAsNonRoot: true
        privileged: false
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: secrets, mountPath: /run/secrets/madpo, readOnly: true}
        - {name: scratch, mountPath: /scratch}
        - {name: tmp, mountPath: /tmp}
        {{- if $values.sharedMemory }}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- end }}
        {{- if include "madpo.hasTls" . }}
        - {name: tls, mountPath: /run/tls, readOnly: true}
        {{- end }}
        {{- if include "madpo.needsRewardCa" . }}
        - {name: reward-ca, mountPath: /run/reward-ca, readOnly: true}
        {{- end }}
  volumes: {{- include "madpo.volumes" . | nindent 4 }}
{{- end -}}

{{- define "madpo.volumes" -}}
{{- $values := index .root.Values .component -}}
- name: secrets
  secret:
    secretName: {{ required "existingSecret is required: the Secret with tokens, the Redis password and S3 keys; make it from what `madpo init` writes (README.md of the chart)" .root.Values.existingSecret }}
    defaultMode: 0440
    items: {{- include "madpo.secretItems" . | trim | nindent 6 }}
- name: scratch
  {{- if $values.scratch.storageClassName }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ $values.scratch.storageClassName }}
        resources: {requests: {storage: {{ $values.scratch.size }}}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $values.scratch.size }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
{{- if $values.sharedMemory }}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ $values.sharedMemory }}}
{{- end }}
{{- if include "madpo.hasTls" . }}
- name: tls
  secret: {secretName: {{ $values.tls.secretName }}, defaultMode: 0440}
{{- end }}
{{- if include "madpo.needsRewardCa" . }}
- name: reward-ca
  secret:
    secretName: {{ .root.Values.reward.tls.secretName }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}

{{- define "madpo.needsRewardCa" -}}
{{- if and (include "madpo.asksReward" .) .root.Values.reward.tls.secretName }}true{{ end -}}
{{- end -}}

{{- define "madpo.resources" -}}
{{- $values := index .root.Values .component -}}
{{- $resources := deepCopy $values.resources -}}
{{- if $values.gpu -}}
{{- if gt (int $values.gpu.count) 0 -}}
{{- $_ := set $resources "limits" (merge (dict $values.gpu.resource (int $values.gpu.count)) (default dict $resources.limits)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The kubelet's own gRPC probe where it can be used: it speaks no TLS. */}}
{{- define "madpo.probes" -}}
{{- $values := index .root.Values .component -}}
{{- $check := "grpc: {port: 50051}" -}}
{{- if include "madpo.hasTls" . -}}
{{- $check = printf "exec: {command: [python, -m, madpo_%s, health]}" .component -}}
{{- end -}}
startupProbe:
  {{ $check }}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: {{ max 1 (div $values.startupSeconds 5) }}
readinessProbe:
  {{ $check }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 2
livenessProbe:
  {{ $check }}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{- define "madpo.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "madpo.componentName" . }}
  labels: {{- include "madpo.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "madpo.selectorLabels" . | nindent 6 }}
{{- end -}}
