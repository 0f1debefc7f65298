"""Published estimators that hvpspec's own are compared with: Hutch++ and XTrace, transcribed from their papers."""
