"""The dashboard: what every page shares, and the way between them."""

from pages.views.frame import navigation

navigation().run()
