from django.contrib import admin

from demo_project.shop.models import Order, Payment, Product, StockMovement, Upload


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("name", "price", "stock")


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("id", "product", "quantity", "email", "placed_at", "receipt_sent_at")
    list_select_related = ("product",)


@admin.register(Payment)
class PaymentAdmin(admin.ModelAdmin):
    list_display = ("order", "amount", "charge_id", "paid_at")
    list_select_related = ("order__product",)


@admin.register(StockMovement)
class StockMovementAdmin(admin.ModelAdmin):
    list_display = ("product", "quantity", "order", "upload")
    list_select_related = ("product", "order__product", "upload")


admin.site.register(Upload)
