"""Family 2: pictures as continuous latents; text is next-token prediction, drawing is cascaded flow matching."""
