{{- define "datastorage.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels by which pods are selected; a dict of `root` and `component`. */}}
{{- define "datastorage.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "datastorage.labels" -}}
{{ include "datastorage.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "datastorage.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "datastorage.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "datastorage.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "datastorage.workloadKind" -}}
{{ ternary "StatefulSet" "Deployment" (eq .Values.spool.kind "persistent") }}
{{- end }}

{{/* What the restricted profile asks of every container. */}}
{{- define "datastorage.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* DATASTORAGE_DATABASE_URL; a dict of `root` and `secret`. */}}
{{- define "datastorage.databaseEnv" -}}
{{- if .root.Values.postgres.enabled -}}
- name: POSTGRES_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "datastorage.postgresSecret" .root }}, key: password}
- name: DATASTORAGE_DATABASE_URL
  value: postgresql://{{ .root.Values.postgres.user }}:$(POSTGRES_PASSWORD)@{{ include "datastorage.name" .root }}-postgres:5432/{{ .root.Values.postgres.database }}
{{- else -}}
- name: DATASTORAGE_DATABASE_URL
  valueFrom:
    secretKeyRef: {name: {{ .secret.name }}, key: {{ .secret.key }}}
{{- end }}
{{- end }}

{{- define "datastorage.postgresSecret" -}}
{{ .Values.postgres.existingSecret | default (printf "%s-postgres" (include "datastorage.name" .)) }}
{{- end }}
