"""The base of all pages: sign-in, rendering, navigation, assets."""
