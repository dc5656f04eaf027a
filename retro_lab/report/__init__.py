"""Reports on finished runs and sweeps: tables, figures and pages, made from their folders alone."""
