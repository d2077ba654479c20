"""The dashboard: what every page shares, and the way between them."""

from pages.frame import navigation

navigation().run()
