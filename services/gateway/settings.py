"""Settings of the gateway."""

from pydantic import Field

from services.runtime.settings import RuntimeSettings


class GatewaySettings(RuntimeSettings):
    """Who may ask what."""

    trust_tenant_header: bool = Field(
        default=False, description="whether X-Tenant-Id names the tenant; only behind a proxy that sets it"
    )
