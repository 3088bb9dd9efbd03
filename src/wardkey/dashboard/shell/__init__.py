"""What every page builds on: sign-in, rendering, navigation, assets."""
