/* handle_request: a personalised page, made at the edge that answers. It knows the user by `user` in the body (JSON), the query or
 * the attribute `user.id`; reads preferences, points and the last visit from the region's tables; and puts this visit. */
#include "streams_function.h"

static streams_text asked(const streams_request *q, const char *name, const char *query, const char *attribute) {
  streams_text found = streams_json_get(streams_field(q, "body"), name);
  if (found.len && found.len <= 4096 && (found.p[0] < '0' || found.p[0] > '9')) found = streams_json_string(found);
  if (!found.len) found = streams_field(q, query);
  if (!found.len) found = streams_field(q, attribute);
  return found;
}

static streams_text key_of(const char *prefix, streams_text user) {
  streams_buffer key = {0, 0, 0};
  streams_append_literal(&key, prefix);
  streams_append_text(&key, user);
  return streams_text_of(&key);
}

static int put_visit(streams_text key, streams_text region, streams_text city) {
  streams_buffer value = {0, 0, 0};
  streams_append_literal(&value, "{\"region\": ");
  streams_append_json(&value, region);
  streams_append_literal(&value, ", \"city\": ");
  streams_append_json(&value, city);
  streams_append_literal(&value, ", \"at\": ");
  streams_append_long(&value, streams_clock_ms());
  streams_append_literal(&value, "}");
  return streams_put(key, streams_text_of(&value), 0);
}

static void paragraph(streams_response *r, const char *label, streams_text value) {
  streams_write(r, "<p>");
  streams_write(r, label);
  streams_append_html(&r->body, value);
  streams_write(r, "</p>\n");
}

void streams_handle_request(const streams_request *q, streams_response *r) {
  streams_text region = streams_field(q, "region"), user = asked(q, "user", "query.user", "user.id");
  streams_text city = asked(q, "city", "query.city", "user.city"), name = {0, 0}, theme = {0, 0};
  streams_text prefs = {0, 0}, points = {0, 0}, last = {0, 0};

  if (user.len) {
    prefs = streams_table_get("prefs", key_of("prefs:", user));
    points = streams_table_get("score", key_of("score:", user));
    streams_text visit = key_of("kv:visit:", user);
    last = streams_table_get("kv", visit);
    name = streams_json_string(streams_json_get(prefs, "name"));
    theme = streams_json_string(streams_json_get(prefs, "theme"));
    if (put_visit(visit, region, city)) {
      streams_status(r, 400);
      streams_header(r, "content-type", streams_literal("text/plain; charset=utf-8"));
      streams_write(r, "user: names no key (use at most 1000 bytes of UTF-8)\n");
      return;
    }
  }
  streams_header(r, "content-type", streams_literal("text/html; charset=utf-8"));
  streams_write(r, "<!doctype html>\n<html><head><title>Welcome</title></head>\n<body class=\"");
  streams_append_html(&r->body, theme.len ? theme : streams_literal("plain"));
  streams_write(r, "\">\n<h1>Hello, ");
  streams_append_html(&r->body, name.len ? name : user.len ? user : streams_literal("guest"));
  streams_write(r, "</h1>\n");
  paragraph(r, "Served by ", region);
  if (city.len) paragraph(r, "You are in ", city);
  if (points.p) paragraph(r, "Points: ", points);
  streams_text before = streams_json_string(streams_json_get(last, "region"));
  if (before.len) paragraph(r, "Your last visit was in ", before);
  streams_write(r, "</body></html>\n");
}
