"""The source of ``deploy/grafana/dashboards``."""
