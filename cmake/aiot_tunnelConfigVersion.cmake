# The package version is that of the header. A requested version is compatible if it has the same
# major version (before 1.0 also the same minor version, see docs/abi.md) and is not newer.
get_filename_component(_aiot_tunnel_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
file(STRINGS "${_aiot_tunnel_prefix}/include/aiot_tunnel_api.h" PACKAGE_VERSION
  REGEX "^#define AIOT_TUNNEL_VERSION \"")
unset(_aiot_tunnel_prefix)
string(REGEX REPLACE "^.*\"(.*)\".*$" "\\1" PACKAGE_VERSION "${PACKAGE_VERSION}")
string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" _aiot_tunnel_series "${PACKAGE_VERSION}")

set(PACKAGE_VERSION_COMPATIBLE TRUE)
set(PACKAGE_VERSION_EXACT FALSE)
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
elseif(NOT PACKAGE_FIND_VERSION_MAJOR EQUAL CMAKE_MATCH_1)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
elseif(CMAKE_MATCH_1 EQUAL 0 AND PACKAGE_FIND_VERSION_COUNT GREATER 1
    AND NOT PACKAGE_FIND_VERSION_MINOR EQUAL CMAKE_MATCH_2)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
elseif(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
unset(_aiot_tunnel_series)
