"""Training data: labels, data sets, distortions."""
