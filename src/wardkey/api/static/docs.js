// Shows the OpenAPI document of this deployment. Nothing is fetched from anywhere else.
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "/v2/openapi.json",
    dom_id: "#api",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    // The online validator would send this deployment's document to a stranger.
    validatorUrl: null,
    // A credential typed here lives as long as the page does.
    persistAuthorization: false,
  });
});
