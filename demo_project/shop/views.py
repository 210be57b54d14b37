from __future__ import annotations

import uuid

from celery.result import AsyncResult
from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from demo_project.shop.models import Order, Product
from demo_project.shop.orders import InvalidVoucher, place_order, upload_delivery_note


class OrderForm(forms.Form):
    product = forms.ModelChoiceField(Product.objects.order_by("name"), empty_label=None)
    quantity = forms.IntegerField(min_value=1, max_value=100, initial=1)
    email = forms.EmailField(initial="you@example.com")
    voucher = forms.CharField(required=False, help_text="No voucher is valid: with one, the order rolls back.")


def front(request: HttpRequest) -> HttpResponse:
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            placed = place_order(**form.cleaned_data)
        except InvalidVoucher as error:
            form.add_error("voucher", str(error))
        else:
            return redirect("shop:order", placed.pk)
    return render(request, "shop/front.html", {"form": form, "products": Product.objects.order_by("name")})


def orders(request: HttpRequest) -> HttpResponse:
    latest = Order.objects.select_related("product").prefetch_related("payments").order_by("-placed_at")[:50]
    rows = [(order, AsyncResult(order.payment_job).state) for order in latest]
    return render(request, "shop/orders.html", {"rows": rows})


def order(request: HttpRequest, order_id: uuid.UUID) -> HttpResponse:
    found = get_object_or_404(Order.objects.select_related("product"), pk=order_id)
    return render(request, "shop/order.html", {"order": found, "payment_job": AsyncResult(found.payment_job)})


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    note = upload_delivery_note("\n".join(f"{product.name},10" for product in Product.objects.all()))
    messages.info(request, f"Delivery note {note.pk} with {len(note.lines)} lines is being booked.")
    return redirect("shop:front")
