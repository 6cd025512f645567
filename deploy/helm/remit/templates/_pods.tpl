{{/* What is the same in every pod. */}}
{{- define "remit.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "remit.container" -}}
image: {{ include "remit.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "remit.secret" -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.secrets.shared }}
      key: {{ .key }}
{{- end -}}

{{/* The settings of every process of Remit's. */}}
{{- define "remit.settings" -}}
{{ include "remit.secret" (dict "root" . "variable" "REMIT_DATABASE_URL" "key" "database-url") }}
- name: REMIT_TOKEN_KEY_FILE
  value: /etc/remit/tokens
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{/* The settings of those that ask policy: the API processes and the graph workers. */}}
{{- define "remit.policySettings" -}}
{{ include "remit.secret" (dict "root" . "variable" "REMIT_ADMIN_TOKEN" "key" "admin-token") }}
{{ include "remit.secret" (dict "root" . "variable" "REMIT_BUNDLE_TOKEN" "key" "bundle-token") }}
{{ include "remit.secret" (dict "root" . "variable" "REMIT_OPA_TOKEN" "key" "opa-token") }}
- name: REMIT_OPA_URL
  value: http://127.0.0.1:8181
{{- end -}}

{{/* The metrics of processes without an API. */}}
{{- define "remit.metricsSettings" -}}
- name: REMIT_METRICS_HOST
  value: "0.0.0.0"
- name: REMIT_METRICS_PORT
  value: "9464"
{{- end -}}

{{- define "remit.mounts" -}}
- name: data
  mountPath: /var/lib/remit
- name: temporary
  mountPath: /tmp
- name: token-keys
  mountPath: /etc/remit/tokens
  readOnly: true
{{- end -}}

{{- define "remit.volumes" -}}
- name: data
  emptyDir: {}
- name: temporary
  emptyDir: {}
- name: token-keys
  secret:
    secretName: {{ .Values.secrets.tokenKeys }}
    defaultMode: 0440
{{- end -}}

{{/*
An OPA beside the process that asks it, on loopback: nobody else reaches it. It needs no probe: when it ends it is
started again, and the process is not ready without it. It starts before the process and ends after it, so that what is
in flight at the end can still be decided. `url` is the service that it pulls its bundle from.
*/}}
{{- define "remit.opa" -}}
- name: opa
  {{- include "remit.container" .root | nindent 2 }}
  restartPolicy: Always
  command: [/usr/local/bin/opa, run, --server, "--addr=127.0.0.1:8181"]
  args:
    - --authentication=token
    - --authorization=basic
    - --config-file=/etc/opa/config.yaml
    - --set-file=keys.remit.key=/etc/opa-secrets/bundle-public.pem
    - --log-format=json
    - --log-level-request=debug
    - --skip-version-check
    - --shutdown-grace-period=5
    - /etc/opa/authz.rego
    - /etc/opa-secrets/opa-credentials.json
  env:
    # Memory for speed: collecting its garbage rarely saves OPA a third of its CPU.
    - name: GOGC
      value: "800"
    - name: GOMEMLIMIT
      value: 256MiB
    - name: REMIT_URL
      value: {{ .url }}
    - name: REMIT_SECRETS
      value: /etc/opa-secrets
  resources: {{- toYaml .root.Values.opa.resources | nindent 4 }}
  volumeMounts:
    - name: opa
      mountPath: /etc/opa
      readOnly: true
    - name: opa-secrets
      mountPath: /etc/opa-secrets
      readOnly: true
{{- end -}}

{{- define "remit.opaVolumes" -}}
- name: opa
  configMap:
    name: {{ include "remit.fullname" . }}-opa
- name: opa-secrets
  secret:
    secretName: {{ .Values.secrets.shared }}
    defaultMode: 0440
    items:
      - key: bundle-public.pem
        path: bundle-public.pem
      - key: bundle-token
        path: bundle-token
      - key: opa-credentials.json
        path: opa-credentials.json
{{- end -}}

{{- define "remit.tracing" -}}
{{- with .Values.tracing.endpoint }}
- name: REMIT_TRACING
  value: "1"
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . }}
{{- end }}
{{- end -}}
