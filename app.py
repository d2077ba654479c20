"""The dashboard: the frame of every page, and the navigation between them."""

from pages.views.frame import navigation

navigation().run()
