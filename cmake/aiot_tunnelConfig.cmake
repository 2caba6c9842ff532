# find_package(aiot_tunnel CONFIG) defines aiot_tunnel_VERSION and, for the installed libraries,
# these targets:
#
#   aiot_tunnel::shared        the shared library
#   aiot_tunnel::static        the static library
#   aiot_tunnel::aiot_tunnel   the shared library; the static one if BUILD_SHARED_LIBS is set to
#                              off or no shared library is installed
#
# All paths are relative to this file, so an installed prefix can be moved.
include(CMakeFindDependencyMacro)
find_dependency(Threads)

get_filename_component(_aiot_tunnel_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_aiot_tunnel_folders lib lib64)
if(CMAKE_LIBRARY_ARCHITECTURE)
  list(PREPEND _aiot_tunnel_folders "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
endif()

# Sets `variable` to the path of the file `name` in one of the folders, or to NOTFOUND.
function(_aiot_tunnel_find variable name)
  unset(found)
  find_file(found NAMES "${name}" PATHS "${_aiot_tunnel_prefix}"
    PATH_SUFFIXES ${_aiot_tunnel_folders} include NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  set(${variable} "${found}" PARENT_SCOPE)
  unset(found CACHE)
endfunction()

# Adds the target aiot_tunnel::<name>.
function(_aiot_tunnel_target name type file headers)
  add_library(aiot_tunnel::${name} ${type} IMPORTED)
  set_target_properties(aiot_tunnel::${name} PROPERTIES
    IMPORTED_LOCATION "${file}"
    INTERFACE_INCLUDE_DIRECTORIES "${headers}"
    INTERFACE_LINK_LIBRARIES "${ARGN}")
endfunction()

_aiot_tunnel_find(_aiot_tunnel_shared libaiot_tunnel.so)
_aiot_tunnel_find(_aiot_tunnel_static libaiot_tunnel.a)
_aiot_tunnel_find(_aiot_tunnel_header aiot_tunnel_api.h)
_aiot_tunnel_find(_aiot_tunnel_pc pkgconfig/aiot_tunnel.pc)
get_filename_component(_aiot_tunnel_include "${_aiot_tunnel_header}" DIRECTORY)

if(_aiot_tunnel_shared AND NOT TARGET aiot_tunnel::shared)
  _aiot_tunnel_target(shared SHARED "${_aiot_tunnel_shared}" "${_aiot_tunnel_include}"
    Threads::Threads)
endif()
if(_aiot_tunnel_static AND _aiot_tunnel_pc AND NOT TARGET aiot_tunnel::static)
  # The libraries that the static library needs depend on its build. The .pc file lists them.
  file(STRINGS "${_aiot_tunnel_pc}" _aiot_tunnel_private REGEX "^Libs\\.private:")
  string(REGEX REPLACE "^Libs\\.private:" "" _aiot_tunnel_private "${_aiot_tunnel_private}")
  separate_arguments(_aiot_tunnel_private UNIX_COMMAND "${_aiot_tunnel_private}")
  _aiot_tunnel_target(static STATIC "${_aiot_tunnel_static}" "${_aiot_tunnel_include}"
    ${_aiot_tunnel_private} Threads::Threads)
endif()

if(NOT TARGET aiot_tunnel::aiot_tunnel)
  if(TARGET aiot_tunnel::shared AND (NOT DEFINED BUILD_SHARED_LIBS OR BUILD_SHARED_LIBS))
    set(_aiot_tunnel_default shared)
  else()
    set(_aiot_tunnel_default static)
  endif()
  if(TARGET aiot_tunnel::${_aiot_tunnel_default})
    add_library(aiot_tunnel::aiot_tunnel INTERFACE IMPORTED)
    set_target_properties(aiot_tunnel::aiot_tunnel PROPERTIES
      INTERFACE_LINK_LIBRARIES aiot_tunnel::${_aiot_tunnel_default})
  else()
    set(aiot_tunnel_FOUND FALSE)
    set(aiot_tunnel_NOT_FOUND_MESSAGE
      "no libaiot_tunnel.so, and no libaiot_tunnel.a with its .pc file, below ${_aiot_tunnel_prefix}")
  endif()
endif()

foreach(_aiot_tunnel_name prefix folders shared static header pc include private default)
  unset(_aiot_tunnel_${_aiot_tunnel_name})
endforeach()
