/* Each header compiles on its own and can be included twice. */
#include HEADER
#include HEADER

typedef int a_translation_unit_holds_a_declaration;
