"""Our hand-kept part of Envoy's API has the library's names and numbers, field by field."""

import importlib
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from kars.egress.envoy import discovery_pb2, ext_authz_pb2, route_pb2

ROUTE = "envoy.config.route.v3"
CORE = "envoy.config.core.v3"
EXPR = "google.api.expr.v1alpha1"
AUTH = "envoy.service.auth.v3"
DISCOVERY = "envoy.service.discovery.v3"

PAIRS = [
    (discovery_pb2.DeltaDiscoveryRequest, DISCOVERY, "DeltaDiscoveryRequest"),
    (discovery_pb2.DeltaDiscoveryResponse, DISCOVERY, "DeltaDiscoveryResponse"),
    (discovery_pb2.Resource, DISCOVERY, "Resource"),
    (discovery_pb2.Node, CORE, "Node"),
    (ext_authz_pb2.HttpRequest, AUTH, "AttributeContextHttpRequest"),
    (ext_authz_pb2.Request, AUTH, "AttributeContextRequest"),
    (ext_authz_pb2.AttributeContext, AUTH, "AttributeContext"),
    (ext_authz_pb2.CheckRequest, AUTH, "CheckRequest"),
    (ext_authz_pb2.CheckResponse, AUTH, "CheckResponse"),
    (ext_authz_pb2.DeniedHttpResponse, AUTH, "DeniedHttpResponse"),
    (ext_authz_pb2.HeaderValueOption, CORE, "HeaderValueOption"),
    (ext_authz_pb2.HeaderValue, CORE, "HeaderValue"),
    (ext_authz_pb2.HttpStatus, "envoy.type.v3", "HttpStatus"),
    (route_pb2.LuaPerRoute, "envoy.extensions.filters.http.lua.v3", "LuaPerRoute"),
    (route_pb2.DataSource, CORE, "DataSource"),
    (route_pb2.SubstitutionFormatString, CORE, "SubstitutionFormatString"),
    (route_pb2.FilterStateValue, "envoy.extensions.filters.common.set_filter_state.v3", "FilterStateValue"),
    (route_pb2.SetFilterState, "envoy.extensions.filters.http.set_filter_state.v3", "Config"),
    (route_pb2.StringMatcher, "envoy.type.matcher.v3", "StringMatcher"),
    (route_pb2.HeaderMatcher, ROUTE, "HeaderMatcher"),
    (route_pb2.RouteMatch, ROUTE, "RouteMatch"),
    (route_pb2.UpgradeConfig, ROUTE, "RouteActionUpgradeConfig"),
    (route_pb2.HeaderValue, CORE, "HeaderValue"),
    (route_pb2.HeaderValueOption, CORE, "HeaderValueOption"),
    (route_pb2.RouteAction, ROUTE, "RouteAction"),
    (route_pb2.RouteAction.MaxStreamDuration, ROUTE, "RouteActionMaxStreamDuration"),
    (route_pb2.DirectResponseAction, ROUTE, "DirectResponseAction"),
    (route_pb2.Route, ROUTE, "Route"),
    (route_pb2.VirtualHost, ROUTE, "VirtualHost"),
    (route_pb2.RouteConfiguration, ROUTE, "RouteConfiguration"),
    (route_pb2.ScopedRouteConfiguration, ROUTE, "ScopedRouteConfiguration"),
    (route_pb2.ScopedRouteConfiguration.Key, ROUTE, "ScopedRouteConfigurationKey"),
    (route_pb2.ScopedRouteConfiguration.Key.Fragment, ROUTE, "ScopedRouteConfigurationKeyFragment"),
    (route_pb2.ExtAuthzPerRoute, "envoy.extensions.filters.http.ext_authz.v3", "ExtAuthzPerRoute"),
    (route_pb2.ExtAuthzPerRoute.CheckSettings, "envoy.extensions.filters.http.ext_authz.v3", "CheckSettings"),
    (route_pb2.Expr, EXPR, "Expr"),
    (route_pb2.Expr.Constant, EXPR, "Constant"),
    (route_pb2.Expr.Ident, EXPR, "ExprIdent"),
    (route_pb2.Expr.Select, EXPR, "ExprSelect"),
    (route_pb2.Expr.Call, EXPR, "ExprCall"),
    (route_pb2.Permission, "envoy.config.rbac.v3", "Permission"),
    (route_pb2.Permission, "envoy.config.rbac.v3", "Principal"),
    (route_pb2.Policy, "envoy.config.rbac.v3", "Policy"),
    (route_pb2.RbacRules, "envoy.config.rbac.v3", "Rbac"),
    (route_pb2.RbacHttp, "envoy.extensions.filters.http.rbac.v3", "Rbac"),
    (route_pb2.RbacPerRoute, "envoy.extensions.filters.http.rbac.v3", "RbacPerRoute"),
    (route_pb2.RbacAction, "envoy.config.rbac.v3", "Action"),
    (route_pb2.TypedExtensionConfig, CORE, "TypedExtensionConfig"),
    (route_pb2.HttpRequestHeaderMatchInput, "envoy.type.matcher.v3", "HttpRequestHeaderMatchInput"),
]


@pytest.mark.parametrize(("ours", "package", "theirs"), PAIRS, ids=[pair[2] for pair in PAIRS])
def test_every_field_that_we_keep_has_the_number_of_the_library(ours: Any, package: str, theirs: str) -> None:
    library = getattr(importlib.import_module(f"envoy_data_plane.{package}"), theirs)
    numbers = {
        name: field.metadata["betterproto"].number for name, field in library.__dataclass_fields__.items()
    }
    descriptor: Descriptor = ours.DESCRIPTOR
    for field in descriptor.fields:
        name = field.name if field.name in numbers else f"{field.name}_"
        assert numbers[name] == field.number, f"{theirs}.{field.name}"
