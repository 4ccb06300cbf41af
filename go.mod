module raimon

go 1.26
