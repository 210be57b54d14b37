from django.urls import path

from demo_project.shop import views

app_name = "shop"
urlpatterns = [
    path("", views.front, name="front"),
    path("orders/", views.orders, name="orders"),
    path("orders/<uuid:order_id>/", views.order, name="order"),
    path("upload/", views.upload, name="upload"),
]
