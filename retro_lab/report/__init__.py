"""Reports: what finished runs and sweeps measured, as tables, figures and pages made from their folders alone."""
